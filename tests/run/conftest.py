"""A tree of one category and a model fitted on it, for the files that need no other; each file has its own, so that it may spoil it."""

from __future__ import annotations

import pytest

from mm3dad.run.fit import fit_detector
from tests.run import toy


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return toy.write_tree(tmp_path_factory.mktemp("tree"), ["nut"])


@pytest.fixture(scope="module")
def model(tree):
    fit_detector("toy", "mvtec3d", tree, tree.parent / "toy-model")
    return tree.parent / "toy-model"
