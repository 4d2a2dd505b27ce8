"""mrad beyond the contract: other products teach it, small defects count, its auxiliary set is checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError
from mm3dad.features.clip import ClipExtractor
from mm3dad.types import Sample
from tests.methods.parts import make_sample, make_samples


def auxiliary(count=5):
    return make_samples(count, category="disc") + make_samples(count, first=20, category="disc", defect="both")


def create(**options):
    return mm3dad.create("mrad", image_size=64, **options)


@pytest.fixture(scope="module")
def fitted():
    return create().fit(auxiliary())


def test_scores_are_probabilities(fitted):
    for sample in (make_sample(1), make_sample(2, "both")):
        prediction = fitted.predict(sample)
        assert 0 <= prediction.score <= 1 and float(prediction.map.min()) >= 0 and float(prediction.map.max()) <= 1 + 1e-6


def test_the_order_of_the_set_does_not_matter(fitted):
    turned = create().fit(auxiliary()[::-1])
    assert turned.predict(make_sample(3, "both")).score == pytest.approx(fitted.predict(make_sample(3, "both")).score, abs=1e-6)


def test_small_defects_teach_unless_the_published_rule_forgets_them():
    small = [replace(sample, mask=shrink(sample.mask)) for sample in auxiliary()]
    assert int(sum(create().fit(small)._memory.patch_labels)) == 5
    with pytest.raises(DataError, match="no defective cell of the grid"):
        create(reference=True).fit(small)


def shrink(mask):
    """Keep one pixel of a mask."""
    kept = torch.zeros_like(mask)
    if bool(mask.any()):
        row, column = mask.nonzero()[0].tolist()
        kept[row, column] = True
    return kept


def test_only_validation_gives_a_threshold(fitted):
    assert fitted.predict(make_sample(1)).threshold is None and fitted.predict(make_sample(1)).is_anomaly is None
    held = create().fit(auxiliary(), validation=make_samples(4, first=40))
    prediction = held.predict(make_sample(1))
    assert prediction.threshold is not None and prediction.calibrated and prediction.score == fitted.predict(make_sample(1)).score


def test_sets_that_cannot_teach_are_explained():
    good, bad = make_samples(2), make_samples(2, defect="both")
    for samples, text in (
        (good, "no defective sample"),
        (bad, "no normal sample"),
        ([*good, replace(bad[0], mask=None)], "is defective and has no mask"),
        ([*good, replace(bad[0], mask=torch.zeros_like(bad[0].mask))], "has an empty mask"),
        ([*good, replace(bad[0], label=None)], "has no label"),
        ([Sample(xyz=good[0].xyz, label=0)], "has no rgb"),
    ):
        with pytest.raises(DataError, match=text):
            create().fit(samples)


def test_published_settings_run_through(tmp_path, monkeypatch):
    """CLIP's layout in small: the whole path, saved and loaded."""
    import open_clip

    class Model:
        def __init__(self):
            self.visual = open_clip.transformer.VisionTransformer(28, 14, 32, 3, 4, 2, output_dim=12)

    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained=None: Model())
    options = {"backbone": "clip_vitl14_336", "weights": "random", "image_size": 70, "reference": True}
    detector = mm3dad.create("mrad", **options).fit(auxiliary())
    assert isinstance(detector.extractor, ClipExtractor)
    detector.save(tmp_path)
    assert mm3dad.load(tmp_path).predict(make_sample(4)).score == detector.predict(make_sample(4)).score


def test_other_backbones_by_name():
    assert create(backbone="test_vit", weights="random").fit(auxiliary(2)).predict(make_sample(4)).score > 0


@pytest.mark.parametrize("options", [{"temperature": 0}, {"share": 2}, {"top": -1}, {"smooth": -1}, {"image_size": 1}])
def test_wrong_options_are_explained(options):
    with pytest.raises(ConfigError, match=f"option {next(iter(options))} must lie in"):
        mm3dad.create("mrad", **options)
