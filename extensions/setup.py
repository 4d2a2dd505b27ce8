"""Builds pointnet2_ops alone; see pyproject.toml beside it."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kernel_command import kernels

setup(**kernels("pointnet2_ops._kernels"))
