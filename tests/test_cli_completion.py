from __future__ import annotations

import shutil
import subprocess

import pytest

from mm3dad.cli import main

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "mm3dad.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as stream:
        patch.setattr("sys.stdout", stream)
        assert main(["completion", "bash"]) == 0
    return path


def complete(script, folder, *words):
    """What bash offers after the words, the last of which is unfinished."""
    if BASH is None:
        pytest.skip("bash is not installed")
    function = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); $(complete -p mm3dad | sed "s/.*-F \\([^ ]*\\).*/\\1/")'
    line = [BASH, "--norc", "-c", f'{function} mm3dad "${{COMP_WORDS[COMP_CWORD]}}"; printf "%s\\n" "${{COMPREPLY[@]}}"', "bash"]
    run = subprocess.run([*line, str(script), "mm3dad", *words], capture_output=True, text=True, cwd=folder, timeout=60)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_bash_completes_verbs_options_and_names(script, tmp_path):
    assert complete(script, tmp_path, "ev") == {"evaluate"}
    assert {"fit", "predict", "serve", "completion"} <= complete(script, tmp_path, "")
    assert complete(script, tmp_path, "fit", "due") == {"duet"}
    assert {"--dataset", "--device"} <= complete(script, tmp_path, "fit", "duet", "--d")
    assert "mvtec3d" in complete(script, tmp_path, "evaluate", "duet", "--dataset", "mv")
    assert complete(script, tmp_path, "evaluate", "zzz") == set()


def test_bash_completes_files(script, tmp_path):
    (tmp_path / "cookie.yaml").touch()
    assert "cookie.yaml" in complete(script, tmp_path, "evaluate", "duet", "--config", "coo")


def test_other_shells(capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef mm3dad")
    assert main(["completion", "tcl"]) == 2
    assert "invalid choice: 'tcl'" in capsys.readouterr().err
