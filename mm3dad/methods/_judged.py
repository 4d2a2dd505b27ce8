"""How an operating point reaches every prediction of every method, whichever way it was asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def keep_point(kind: type) -> None:
    """Make a method's own prediction functions judge by the operating point, and what changes its fit drop the point.

    A method fills `predict_batch` and, where it is transductive, `predict_all`; it need not know of operating points.
    """
    for name in ("predict_batch", "predict_all"):
        if name in vars(kind):
            setattr(kind, name, _judged(vars(kind)[name]))
    for name in ("fit", "add"):
        if name in vars(kind):
            setattr(kind, name, _dropping(vars(kind)[name]))


def _judged(predict: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(predict)
    def judged(self: Any, *arguments: Any, **named: Any) -> Any:
        predictions = predict(self, *arguments, **named)
        point = self.operating_point
        return predictions if point is None else [point.judge(prediction) for prediction in predictions]

    return judged


def _dropping(fit: Callable[..., Any]) -> Callable[..., Any]:
    """The scores change with the fit, so the point that was chosen on the old ones goes; a fit that fails leaves it."""

    @functools.wraps(fit)
    def dropping(self: Any, *arguments: Any, **named: Any) -> Any:
        fitted = fit(self, *arguments, **named)
        self.operating_point = None
        return fitted

    return dropping
