"""Scores of patches, maps of pixels, and their scale."""

from __future__ import annotations

from mm3dad.scoring.calibrate import Calibration, fold_indices, held_out_numbers, threshold_f1, threshold_for_rate
from mm3dad.scoring.maps import blur_5x5, blur_8bit, pixel_map, points_to_map, smooth_map, top_fraction_score, upsample_map
from mm3dad.scoring.mutual import interval_mean, mutual_distances, mutual_scores
from mm3dad.scoring.nearest import nearest_scores, own_normalisation, reweight_score, shared_normalisation
from mm3dad.scoring.operating import OperatingPoint, choose_by_f1, choose_by_rate
from mm3dad.scoring.windowed import windowed_scores

__all__ = [
    "Calibration",
    "OperatingPoint",
    "blur_5x5",
    "blur_8bit",
    "choose_by_f1",
    "choose_by_rate",
    "fold_indices",
    "held_out_numbers",
    "interval_mean",
    "mutual_distances",
    "mutual_scores",
    "nearest_scores",
    "own_normalisation",
    "pixel_map",
    "points_to_map",
    "reweight_score",
    "shared_normalisation",
    "smooth_map",
    "threshold_f1",
    "threshold_for_rate",
    "top_fraction_score",
    "upsample_map",
    "windowed_scores",
]
