from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

import mm3dad
from mm3dad import files
from mm3dad.methods import _modality
from mm3dad.types import Sample
from tests.methods.parts import SMALL, make_samples
from tests.methods.parts import make_sample as make_part
from tests.view.chromium import Chromium
from tests.view.parts import make_sample, write_sample


@pytest.fixture
def sample() -> Sample:
    return make_sample()


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    """A running Chromium."""
    found = Chromium()
    yield found
    found.close()


@pytest.fixture(scope="session")
def plates(tmp_path_factory):
    """A data set of plates on disk, and a model fitted on its good parts: (root of the category, folder of the model)."""
    root, model = tmp_path_factory.mktemp("plates"), tmp_path_factory.mktemp("model")
    good = make_samples(4)
    for one in (*good, *(make_part(seed, "both") for seed in (70, 71))):
        write_sample(root, one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_modality, "RGBBranch", functools.cache(_modality.RGBBranch))
        mm3dad.create("duet", **SMALL).fit(good).save(model)
    dataset = {"name": "folder", "root": str(root), "options": {}}
    files.write_json(model / "fit.json", {"dataset": dataset, "categories": ["plate"], "samples": [one.meta.id for one in good]})
    return root / "plate", model
