from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import pytest

from mm3dad.cli import main
from mm3dad.cli.parser import build_parser, verb_parsers

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


@pytest.fixture(scope="module")
def fish_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "mm3dad.fish"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as stream:
        patch.setattr("sys.stdout", stream)
        assert main(["completion", "fish"]) == 0
    return path


def test_fish_script_has_every_verb_and_option(fish_script):
    parser = build_parser()
    lines = [shlex.split(line.replace("\\'", "")) for line in fish_script.read_text().splitlines()]  # quotes close
    assert all(line[:3] == ["complete", "-c", "mm3dad"] for line in lines)
    for name, verb in verb_parsers(parser).items():
        assert any(line[3:7] == ["-n", "__fish_use_subcommand", "-a", name] for line in lines)
        own = [line for line in lines if f"__fish_seen_subcommand_from {name}" in line]
        flags = {flag for action in verb._actions for flag in action.option_strings}
        assert {f"--{line[i + 1]}" for line in own for i, word in enumerate(line) if word == "-l"} == {f for f in flags if f[:2] == "--"}
    (methods,) = [line for line in lines if "__fish_seen_subcommand_from fit" in line and "-l" not in line]
    assert {"duet", "resad"} <= set(methods[methods.index("-a") + 1].split())


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_verbs_options_names_and_files(fish_script, tmp_path):
    (tmp_path / "cookie.yaml").touch()

    def offers(line):
        words = ["fish", "--no-config", "-c", f'source "{fish_script}"; complete -C "{line}"']
        run = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60, env={**os.environ, "HOME": str(tmp_path)})
        assert run.returncode == 0 and not run.stderr, run.stderr
        return {row.split("\t")[0] for row in run.stdout.splitlines()}

    assert offers("mm3dad ev") == {"evaluate"}
    assert {"fit", "push", "completion"} <= offers("mm3dad ")
    assert offers("mm3dad fit due") == {"duet"}
    assert offers("mm3dad fit duet --d") == {"--dataset", "--device"}
    assert offers("mm3dad evaluate duet --dataset mv") == {"mvtec3d"}
    assert offers("mm3dad completion f") == {"fish"}
    assert "cookie.yaml" in offers("mm3dad evaluate duet --config coo")
    assert "cookie.yaml" in offers("mm3dad predict coo")
    assert offers("mm3dad evaluate zzz") == set()


def test_other_shells(capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef mm3dad")
    assert main(["completion", "tcl"]) == 2
    assert "invalid choice: 'tcl'" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_its_script(tmp_path, capsys):
    main(["completion", "zsh"])
    path = tmp_path / "_mm3dad"
    path.write_text(capsys.readouterr().out)
    asked = f'fpath=("{tmp_path}" $fpath); autoload -Uz compinit; compinit -u -D; autoload +X _mm3dad; print ${{_comps[mm3dad]}}'
    done = subprocess.run(["zsh", "-f", "-c", asked], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("_mm3dad", "")
    assert subprocess.run(["zsh", "-f", "-n", str(path)], capture_output=True, timeout=60).stderr == b""
