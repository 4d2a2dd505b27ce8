"""Fusion of the modalities' scores and re-scoring by a neighbourhood."""

from __future__ import annotations

from mm3dad.fusion.crossmodal import enhance, enhance_published
from mm3dad.fusion.late import RULES, combine
from mm3dad.fusion.rescore import judge_against_neighbors, rescore

__all__ = ["RULES", "combine", "enhance", "enhance_published", "judge_against_neighbors", "rescore"]
