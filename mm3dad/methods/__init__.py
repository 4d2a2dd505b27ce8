"""One file per method; `_detector` is the contract they share."""

from mm3dad.methods._config import option
from mm3dad.methods._detector import Detector, Needs, load_detector, resolve_config

__all__ = ["Detector", "Needs", "load_detector", "option", "resolve_config"]
