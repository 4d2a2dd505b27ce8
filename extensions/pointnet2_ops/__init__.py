"""The point operations of PointNet++ under their familiar names, on the CPU and on CUDA."""

from pointnet2_ops import pointnet2_utils

__version__ = "0.1.0"
__all__ = ["pointnet2_utils"]
