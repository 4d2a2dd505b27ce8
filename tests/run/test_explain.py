"""Normal samples are found by the ids that an explanation names, wherever the model knows them from."""

from __future__ import annotations

import shutil

import pytest
import torch

import mm3dad
from mm3dad import files
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.run.explain import Explainer, NormalSamples
from mm3dad.run.fit import fit_detector
from tests.run import toy

toy.register()


@pytest.fixture
def tree(tmp_path):
    return toy.write_tree(tmp_path / "data", train=3)


def test_ids_of_one_category_of_several_and_of_turned_copies(tmp_path, tree):
    fit_detector("toy", "folder", tree, tmp_path / "one", categories=["nut"])
    fit_detector("toy", "folder", tree, tmp_path / "all", multiclass=True)
    expected = mm3dad.open_dataset("folder", tree, "nut", "train")[1]
    one = NormalSamples(tmp_path / "one").read("train/good/001")
    several = NormalSamples(tmp_path / "all").read("nut/train/good/001")
    turned = NormalSamples(tmp_path / "one").read("train/good/001+1m")
    assert torch.equal(one.rgb, expected.rgb) and torch.equal(several.xyz, expected.xyz) and one.meta.id == "train/good/001"
    assert torch.equal(turned.rgb, torch.rot90(expected.rgb, 1, (-2, -1)).flip(-1))


def test_what_is_lost_is_named(tmp_path, tree):
    fit_detector("toy", "folder", tree, tmp_path / "model", categories=["nut"])
    normals = NormalSamples(tmp_path / "model")
    with pytest.raises(DataError, match="no sample 'train/good/777'"):
        normals.read("train/good/777")
    shutil.rmtree(tree)
    with pytest.raises(DataError, match="put the data back"):
        normals.read("train/good/000")
    files.write_json(tmp_path / "model" / "fit.json", {"dataset": "folder"})
    with pytest.raises(DataError, match="fit again"):
        NormalSamples(tmp_path / "model").read("train/good/000")
    (tmp_path / "model" / "fit.json").unlink()
    with pytest.raises(DataError, match=r"no fit\.json"):
        NormalSamples(tmp_path / "model").read("train/good/000")


def test_a_method_without_an_answer_says_so(tmp_path, tree):
    fit_detector("toy", "folder", tree, tmp_path / "model", categories=["nut"])
    with pytest.raises(ConfigError, match="toy does not explain"):
        Explainer(tmp_path / "model").explain(mm3dad.open_dataset("folder", tree, "nut", "test")[0])
    with pytest.raises(ModelError):
        Explainer(tmp_path / "nothing")
