"""Checks that the ops share: bad input never reaches the arithmetic."""

from __future__ import annotations

from torch import Tensor

from mm3dad.errors import ConfigError, ShapeError
from mm3dad.ops.finite import is_finite


def check_rows(name: str, rows: Tensor, width: int | None = None, least: int = 1) -> None:
    """Demand a finite floating (N, D) tensor with at least `least` rows and, when given, `width` columns.

    Raises:
        ShapeError: wrong type, dtype, shape, or a NaN or Inf inside.
    """
    wanted = f"(N, {width if width is not None else 'D'})"
    if not isinstance(rows, Tensor):
        raise ShapeError(f"{name} must be a torch tensor {wanted}, got {type(rows).__name__}; use torch.from_numpy(...)")
    if rows.ndim != 2 or rows.shape[1] == 0 or (width is not None and rows.shape[1] != width):
        raise ShapeError(f"{name} must be {wanted}, got {tuple(rows.shape)}; give one row per point")
    if not rows.is_floating_point():
        raise ShapeError(f"{name} must be floating point, got {rows.dtype}; use {name}.float()")
    if rows.shape[0] < least:
        raise ShapeError(f"{name} must have at least {least} rows, got {rows.shape[0]}; is the cloud empty or mostly invalid?")
    if not is_finite(rows):
        raise ShapeError(f"{name} must be finite, got NaN or Inf; drop invalid points first (Sample.valid)")


def check_integer(name: str, value: int, least: int, most: int | None = None, cure: str = "") -> int:
    """Demand an integer inside [least, most] and return it.

    Raises:
        ConfigError: not an integer, or out of range.
    """
    limits = f"at least {least}" if most is None else f"{least} to {most}"
    if isinstance(value, bool) or (not isinstance(value, int) and not hasattr(value, "__index__")):
        raise ConfigError(f"{name} must be an integer ({limits}), got {value!r}")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise ConfigError(f"{name} must be {limits}, got {number}{'; ' + cure if cure else ''}")
    return number


def check_same_device(**tensors: Tensor) -> None:
    """Demand that all tensors lie on one device.

    Raises:
        ShapeError: two devices; the message names them.
    """
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ShapeError(f"all tensors must be on one device, got {listed}; move them with .to(device)")
