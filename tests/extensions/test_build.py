"""The build of the kernels: what it says where it cannot, when it compiles CUDA, and that the CUDA sources compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
CUDA_SOURCES = sorted((ROOT / "extensions" / "csrc").glob("*.cu"))
ARCHITECTURES = (80, 90, 100)


@pytest.fixture
def building(monkeypatch, tmp_path):
    """The build script, writing to a temporary folder."""
    spec = importlib.util.spec_from_file_location("build_kernels", ROOT / "extensions" / "build_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WORKSPACE", tmp_path / "objects")
    for name in ("MM3DAD_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_no_compiler(building, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(building.BuildError, match=r"no C\+\+ compiler is found \(no-such-compiler\); install g\+\+"):
        building.build(tmp_path / "_kernels.so")
    assert not list(tmp_path.iterdir())


def test_only_what_changed_is_compiled_again(building, monkeypatch, tmp_path):
    sources = tmp_path / "csrc"
    sources.mkdir()
    for name in ("one", "two"):
        (sources / f"{name}.cpp").write_text(f"// flags: -DNAME={name}\nint NAME() {{ return 1; }}\n")
    monkeypatch.setattr(building, "SOURCES", sources)
    ran = []
    monkeypatch.setattr(building, "_run", lambda command, run=building._run: (ran.append(command), run(command)))
    monkeypatch.setenv("MM3DAD_CUDA", "0")
    library = tmp_path / "_kernels.so"
    assert building.build(library) == [library]
    assert library.exists()
    assert len(ran) == 3
    assert any("-DNAME=one" in command for command in ran)
    building.build(library)
    assert len(ran) == 4  # the link alone
    (sources / "two.cpp").write_text("int three() { return }\n")
    os.utime(sources / "two.cpp", (2**31, 2**31))
    before = library.read_bytes()
    with pytest.raises(building.BuildError, match=r"failed: .*two.cpp.*error"):
        building.build(library)
    assert library.read_bytes() == before


def test_cuda_is_compiled_for_a_gpu_or_when_asked_for(building, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for available, wanted, found in ((False, "", None), (True, "", str(nvcc)), (True, "0", None), (False, "1", str(nvcc))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setenv("MM3DAD_CUDA", wanted)
        assert building.find_nvcc() == found
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(building.BuildError, match="MM3DAD_CUDA=1 needs nvcc"):
        building.find_nvcc()


def test_architectures_are_the_users_or_none(building, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert building._architectures() == []
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    assert building._architectures() == ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]


@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.name)
def test_cuda_source_compiles(building, source):
    """Without a GPU, for three generations of cards; nothing is run."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH, so the CUDA sources are not compiled here")
    head = source.read_text().splitlines()[0]
    flags = head.removeprefix("// flags:").split() if head.startswith("// flags:") else []
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    include = f"-I{Path(torch.__file__).parent / 'include'}"
    command = [nvcc, *building.NVCC_FLAGS, *flags, *targets, include, "-fatbin", str(source), "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def test_every_cuda_kernel_has_its_cpu_twin():
    for source in CUDA_SOURCES:
        assert source.with_suffix(".cpp").exists()
