"""Models that earlier versions wrote are read, and give the numbers they gave.

`tests/frozen/format1/model` was written by 0.1.0 (`duet` on clouds alone, 4 plates of `tests/methods/parts.py`); `expected.json` holds
what that version predicted for one dented plate. A change that cannot keep these numbers raises `FORMAT`, or says in CHANGELOG.md
that models must be fitted again, and adds a folder of its own here.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import mm3dad
from mm3dad.methods._detector import FORMAT
from tests.conftest import ROOT
from tests.methods.parts import make_sample

FROZEN = sorted((ROOT / "tests" / "frozen").iterdir())


def test_there_is_one_of_every_format():
    assert [folder.name for folder in FROZEN] == [f"format{number + 1}" for number in range(FORMAT)]


@pytest.mark.parametrize("folder", FROZEN, ids=lambda folder: folder.name)
def test_a_kept_model_gives_the_numbers_it_gave(folder):
    expected = json.loads((folder / "expected.json").read_text())
    found = mm3dad.load(folder / "model").predict(make_sample(100, "dent"))
    assert found.score == pytest.approx(expected["score"], rel=1e-4)
    assert found.threshold == pytest.approx(expected["threshold"], rel=1e-6)
    torch.testing.assert_close(found.map[::16, ::16], torch.tensor(expected["map"]), rtol=1e-3, atol=1e-4)


def test_a_model_from_before_calibrate_is_read(tmp_path):
    """0.1.0's first models have no operating point: the method's own threshold holds."""
    shutil.copytree(FROZEN[0] / "model", tmp_path / "model")
    text = json.loads((tmp_path / "model/model.json").read_text())
    del text["operating_point"]
    (tmp_path / "model/model.json").write_text(json.dumps(text))
    detector = mm3dad.load(tmp_path / "model")
    assert detector.operating_point is None
    assert detector.predict(make_sample(100, "dent")).threshold == pytest.approx(
        json.loads((FROZEN[0] / "expected.json").read_text())["threshold"], rel=1e-6
    )
