"""`import mm3dad` is light: a command line that only lists names must not wait for torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "open3d", "faiss", "sklearn", "matplotlib", "scipy", "numpy", "rich")
PROBE = """
import json, sys, time
start = time.perf_counter()
import mm3dad
seconds = time.perf_counter() - start
{then}
print(json.dumps([seconds, sorted(name for name in {heavy!r} if name in sys.modules)]))
"""


def probe(then: str = "") -> tuple[float, list[str]]:
    """Import in a fresh interpreter; return the seconds and the heavy libraries that came along."""
    code = PROBE.format(then=then, heavy=HEAVY)
    seconds, loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    return seconds, loaded


def test_import_takes_less_than_0_3_seconds():
    assert min(probe()[0] for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    "then",
    [
        "",
        "mm3dad.list_methods(), mm3dad.list_synthesizers()",
        "from mm3dad import *",
        "import mm3dad.registry, mm3dad.files, mm3dad.errors, mm3dad.types",
    ],
)
def test_import_loads_no_heavy_library(then):
    assert probe(then)[1] == []


def test_front_door_offers_the_promised_names():
    import mm3dad

    promised = {"create", "load", "list_methods", "list_synthesizers", "open_dataset", "evaluate", "Sample", "Prediction", "__version__"}
    assert promised <= set(mm3dad.__all__)
    assert all(hasattr(mm3dad, name) for name in mm3dad.__all__)
    assert "duet" in mm3dad.list_methods()


def test_unknown_method_and_dataset_name_the_nearest():
    import mm3dad
    from mm3dad.errors import ConfigError

    with pytest.raises(ConfigError, match="unknown method 'duett'; did you mean 'duet'"):
        mm3dad.create("duett")
    with pytest.raises(ConfigError, match="unknown dataset 'mvtec'; did you mean 'mvtec3d'"):
        mm3dad.open_dataset("mvtec", ".", "bagel", "test")
