"""Compile extensions/csrc into one library that `torch.ops.load_library` loads: python extensions/build_kernels.py.

Both setup scripts call this file, so that there is one set of compiler options. Needs torch's headers and a C++ compiler; CUDA sources are
compiled when torch finds a GPU (or MM3DAD_CUDA=1 asks for it) and nvcc is there. Only files that changed are compiled again. A source may
ask for further options in its first line: `// flags: -ffp-contract=off`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
WORKSPACE = HERE / "build"  # one for all ways to build, so that nothing is compiled twice
LIBRARY = HERE.parent / "mm3dad" / "ops" / "_kernels.so"
# The stable ABI of torch 2.10: one build serves that release and those after it.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# Symbols stay inside, so that two copies of the library in one process (mm3dad's and pointnet2_ops' own) never mix.
CPP_FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fPIC", "-fvisibility=hidden", *DEFINES]
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA", *DEFINES]


class BuildError(Exception):
    """The kernels cannot be built here; the message is one line with the cure."""


def build(library: Path = LIBRARY) -> list[Path]:
    """Compile what changed and link `library` (and its CUDA twin where there is a GPU).

    Returns:
        The libraries written.
    Raises:
        BuildError: no torch, no compiler, or the compiler failed.
    """
    try:
        import torch
    except ImportError as error:
        raise BuildError(f"torch does not import ({error}); pip install 'torch>=2.10' first, then build without isolation") from error
    torch_home = Path(torch.__file__).parent
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("c++") or ""]
    if not shutil.which(compiler[0]):
        raise BuildError(f"no C++ compiler is found ({compiler[0] or 'g++'}); install g++ (Debian: apt-get install g++)")
    objects = _compile([*compiler, *CPP_FLAGS], sorted(SOURCES.glob("*.cpp")), torch_home)
    links = [f"-L{torch_home / 'lib'}", "-ltorch_cpu"]
    written = [_link([*compiler, "-shared", "-fopenmp"], objects, links, library)]
    if nvcc := find_nvcc():
        objects = _compile([nvcc, *NVCC_FLAGS, *_architectures()], sorted(SOURCES.glob("*.cu")), torch_home)
        links += ["-ltorch_cuda", "-lc10_cuda"]
        twin = library.with_name(library.name.replace(".so", "_cuda.so"))
        written.append(_link([nvcc, "-shared", "-cudart", "static"], objects, links, twin))
    return written


def find_nvcc() -> str | None:
    """Return the nvcc to use, or None where the CUDA sources are to be left alone.

    Raises:
        BuildError: MM3DAD_CUDA=1, but nvcc or a torch with CUDA is missing.
    """
    import torch

    wanted = os.environ.get("MM3DAD_CUDA", "")
    if wanted == "0" or (wanted != "1" and not torch.cuda.is_available()):
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
    if nvcc and torch.version.cuda:
        return nvcc
    if wanted == "1":
        raise BuildError("MM3DAD_CUDA=1 needs nvcc (on PATH or below CUDA_HOME) and a torch with CUDA; install them or unset MM3DAD_CUDA")
    return None


def _architectures() -> list[str]:
    # The user's list or the card that is here; nothing is ever set for others, nvcc's own default knows more cards than this file.
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    flags = []
    for item in listed:
        number = item.removesuffix("+PTX").replace(".", "")
        code = f"[sm_{number},compute_{number}]" if item.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    if flags:
        return flags
    import torch

    return ["-arch=native"] if torch.cuda.is_available() else []


def _compile(command: list[str], sources: list[Path], torch_home: Path) -> list[Path]:
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{torch_home / 'include'}", f"-I{torch_home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    newest_header = max((path.stat().st_mtime for path in SOURCES.glob("*.h")), default=0.0)

    def compile_one(source: Path) -> Path:
        target = WORKSPACE / f"{source.name}.o"
        with source.open() as file:
            marked = re.match(r"// flags:(.*)", file.readline())
        full = [*command, *(marked[1].split() if marked else []), *includes, "-c", str(source), "-o", str(target)]
        record = target.with_suffix(".command")
        text = shlex.join(full)
        made = target.stat().st_mtime if target.exists() and record.exists() and record.read_text() == text else 0.0
        if made <= max(source.stat().st_mtime, newest_header):
            _run(full)
            record.write_text(text)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def _link(command: list[str], objects: list[Path], links: list[str], library: Path) -> Path:
    # Written beside and moved, so that a library in use by another process is never half replaced.
    part = library.with_suffix(".part")
    library.parent.mkdir(parents=True, exist_ok=True)
    _run([*command, *map(str, objects), "-o", str(part), *links])
    part.replace(library)
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), f"exit status {done.returncode}")
        sys.stderr.write(done.stderr)
        raise BuildError(f"{Path(command[0]).name} failed: {first.strip()}; fix it and run python extensions/build_kernels.py")


if __name__ == "__main__":
    try:
        for path in build():
            print(f"built {path}")
    except BuildError as error:
        sys.exit(f"native kernels: {error}")
