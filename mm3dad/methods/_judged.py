"""What holds for every method: its predictions are judged by the operating point, its fit does not depend on the order of samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mm3dad.types import Sample


def keep_point(kind: type) -> None:
    """Make a method's own prediction functions judge by the operating point; what changes its fit drops the point and sorts by id.

    A method fills `predict_batch` and, where it is transductive, `predict_all`; it need not know of operating points or of orders.
    """
    for name in ("predict_batch", "predict_all"):
        if name in vars(kind):
            setattr(kind, name, _judged(vars(kind)[name]))
    for name in ("fit", "add", "forget"):
        if name in vars(kind):
            setattr(kind, name, _fitting(vars(kind)[name]))


def _judged(predict: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(predict)
    def judged(self: Any, *arguments: Any, **named: Any) -> Any:
        predictions = predict(self, *arguments, **named)
        point = self.operating_point
        return predictions if point is None else [point.judge(prediction) for prediction in predictions]

    return judged


def _fitting(fit: Callable[..., Any]) -> Callable[..., Any]:
    """The scores change with the fit, so the point that was chosen on the old ones goes; a fit that fails leaves it."""

    @functools.wraps(fit)
    def fitting(self: Any, *arguments: Any, **named: Any) -> Any:
        # Whether a short training on a labelled set converges may hang on its order (resad's does): there the caller's stays.
        if not (self.needs.trains and "auxiliary" in self.needs.settings):
            arguments = (*map(_in_order, arguments[:1]), *arguments[1:])
            named |= {name: _in_order(value) for name, value in named.items() if name == "samples"}
        fitted = fit(self, *arguments, **named)
        self.operating_point = None
        return fitted

    return fitting


def _in_order(samples: Any) -> Any:
    """Return samples that lie in memory by category and id; a data set reads its own in that order, and each only when it is asked for."""
    if isinstance(samples, list | tuple) and all(isinstance(sample, Sample) for sample in samples):
        return sorted(samples, key=lambda sample: (sample.meta.category, sample.meta.id))
    return samples
