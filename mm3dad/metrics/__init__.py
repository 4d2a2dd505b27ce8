"""Metrics of the protocol; they take numpy arrays or torch tensors and return floats."""

from mm3dad.metrics.aupro import aupro, aupro_musc, pro_curve
from mm3dad.metrics.bundle import image_metrics, pixel_metrics
from mm3dad.metrics.ranking import auroc, average_precision, bootstrap_auroc, f1_max

__all__ = ["aupro", "aupro_musc", "auroc", "average_precision", "bootstrap_auroc", "f1_max", "image_metrics", "pixel_metrics", "pro_curve"]
