"""How few random cuts part a row from the normal ones: scikit-learn's isolation forest."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from mm3dad.errors import ConfigError, ShapeError


class Forest:
    """An isolation forest over a few numbers per sample (Liu et al., ICDM 2008).

    It is grown from its normal rows when it is first asked, so a saved model needs to keep these rows alone.

    Args:
        normal: (M, C) floating, a row per normal sample.
        trees: how many.
        seed: of the cuts.
    Raises:
        ShapeError: normal is not (M, C).
    """

    def __init__(self, normal: Tensor, trees: int = 100, seed: int = 0) -> None:
        if normal.ndim != 2:
            raise ShapeError(f"normal must be (M, C), a row per normal sample, got {tuple(normal.shape)}")
        self.normal, self.trees, self.seed = normal, trees, seed

    @cached_property
    def _forest(self) -> Any:
        try:
            from sklearn.ensemble import IsolationForest
        except ImportError as error:
            raise ConfigError("the isolation forest needs the package scikit-learn; pip install 'mm3dad[diffusion]'") from error
        return IsolationForest(n_estimators=self.trees, random_state=self.seed % 2**32).fit(self.normal.double().numpy())

    def score(self, row: Tensor) -> float:
        """Return the anomaly score of a row (C,), in (0, 1]: above 0.5 where fewer cuts than usual part it from the normal rows.

        Beyond the normal rows the score does not grow any more: all far rows are alike to it.
        """
        return -float(self._forest.score_samples(row.double().numpy()[None])[0])
