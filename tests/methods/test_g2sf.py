"""g2sf beyond the contract: what is learned, what is left of it without learning, one sample, both modalities, resuming."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad.errors import ConfigError, DataError
from mm3dad.fusion.metric import pick_rank
from mm3dad.methods import g2sf
from mm3dad.methods._metric import Pairs, judge_pairs, train_metric
from mm3dad.methods.g2sf import G2SF
from mm3dad.metrics import auroc
from mm3dad.nets.scale_net import ScaleNet
from mm3dad.nets.task import TrainingRun, TrainingSettings
from tests.methods.parts import make_sample, make_samples


def create(**options):
    small = {"image_size": 64, "max_points": 600, "defects": 6, "epochs": 2, "hidden": 16, "batch": 64}
    return mm3dad.create("g2sf", **small | options)


def make_pairs(count=400, seed=0):
    """Patches whose image part deviates along its first channel where they are defective, and along the others where they are not."""
    generator = torch.Generator().manual_seed(seed)
    is_normal = torch.arange(count) % 2 == 0
    prototypes = torch.randn(count, 1, 6, generator=generator).expand(-1, 5, -1) + 0.01 * torch.randn(count, 5, 6, generator=generator)
    away = torch.rand(count, 6, generator=generator) + 0.5
    away[is_normal, 0] = 0
    away[~is_normal, 1:3] = 0
    away[:, 3:] *= 0.1
    return Pairs(prototypes[:, 0] + away, prototypes, 3, torch.tensor([0.7, 0.1])), is_normal


def test_learns_in_which_direction_a_distance_counts():
    pairs, is_normal = make_pairs()
    torch.manual_seed(0)
    net = ScaleNet(6, 32, 16, 16)
    train_metric(net, (pairs, is_normal), None, 15, 128, 3e-3, False, TrainingSettings(), TrainingRun(), lambda *_: None)
    others, labels = make_pairs(seed=1)
    with torch.no_grad():
        fused = pick_rank(judge_pairs(net, others.features, others.prototypes[:, 0], others)[0][:, None])
    plain = others.distances[:, 0].mean(1)
    assert auroc(fused, (~labels).long()) > max(0.95, auroc(plain, (~labels).long()) + 0.1)


def test_without_learning_it_is_the_mean_of_both_distances():
    detector = create(learned=False).fit(make_samples(3))
    found = detector.predict(make_sample(60, "both"))
    assert found.score <= float(found.parts["rgb_score"] + found.parts["xyz_score"]) / 2 + 1e-5
    assert detector._net is None and "metric" not in detector.training.histories


@pytest.mark.parametrize("reference", [False, True])
def test_a_drawn_defect_is_seen_by_both_modalities_and_by_either_alone(reference, monkeypatch):
    seen = []
    spoil = G2SF._spoil

    def look(self, *arguments):
        seen.append(spoil(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(G2SF, "_spoil", look)
    create(reference=reference, defects=2).fit(make_samples(3))
    for both, *alone in seen:
        pairs, is_normal = both
        assert bool(is_normal.any()) and not bool(is_normal.all())
        assert len(alone) == (0 if reference else 2)
        pasted = pairs.features[~is_normal]
        for number, (found, no_normal) in enumerate(alone):
            assert not bool(no_normal.any()) and len(found.features) == len(pasted)
            parts = found.features.tensor_split([found.split], dim=1), pasted.tensor_split([found.split], dim=1)
            assert torch.equal(parts[0][number], parts[1][number]) and not torch.equal(parts[0][1 - number], parts[1][1 - number])


def test_layers_have_one_spread_and_cells_without_points_stay_empty():
    detector = create().fit(make_samples(3))
    rows, widths = detector._banks["rgb"].rows.float(), detector._extractor("rgb").extractor.widths
    assert len(widths) > 1 and sum(widths) == rows.shape[1]
    # Of a tenth of the rows, so only about one.
    for part in rows.split(widths, dim=1):
        assert 0.5 < float(part.std(0, correction=0).norm()) < 2
    sample = make_sample(60)
    sample = replace(sample, xyz=torch.where(torch.arange(sample.size[1]) < 24, 0.0, sample.xyz), valid=None)
    cells = detector._banks["xyz"].normalise(detector._describe(sample)["xyz"].features)
    assert torch.equal(g2sf._hold_points(cells), detector._describe(sample)["xyz"].features.any(1))


@pytest.mark.parametrize("reference", [False, True])
def test_the_score_is_of_the_map_and_as_published_of_the_cells(reference):
    found = create(reference=reference).fit(make_samples(3)).predict(make_sample(60, "both"))
    assert (abs(found.score - float(found.map.max())) < 1e-4) is not reference
    assert not reference or found.score > float(found.map.max())


def test_the_epoch_that_ranks_defects_best_is_kept_untrained_if_none_is_better():
    pairs, is_normal = make_pairs()
    plain = pairs.distances[:, 0].mean(1)
    torch.manual_seed(0)
    net, run = ScaleNet(6, 8, 4, 4), TrainingRun()
    torch.nn.init.zeros_(net.regressor[-1].weight)
    torch.nn.init.zeros_(net.regressor[-1].bias)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    # All scales are 1, and by these labels the plain mean is perfect, so that no epoch can do better.
    train_metric(net, (pairs, is_normal), (pairs, plain < plain.median()), 3, 128, 3e-3, False, TrainingSettings(), run, lambda *_: None)
    history = run.histories["metric"]
    assert history.start < 1e-6 and history.best == 0 and min(row["validation"] for row in history.rows) > 1e-4
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_one_sample_is_enough():
    found = create().fit(make_samples(1)).predict(make_sample(60, "both"))
    assert found.score > 0 and found.threshold is None


def test_needs_both_modalities():
    with pytest.raises(ConfigError, match="g2sf fuses both modalities, got modalities=rgb"):
        create(modalities="rgb")
    with pytest.raises(DataError, match="has no xyz, and g2sf fuses both modalities; complete it"):
        create().fit(make_samples(2, modalities=("rgb",)))


def test_a_cloud_without_points_is_refused():
    sample = make_sample(1)
    with pytest.raises(DataError):
        create().fit([replace(sample, xyz=torch.zeros_like(sample.xyz), valid=None)])


def test_options_out_of_range():
    for name, value in (("defects", 0), ("hidden", 0), ("epochs", 0), ("rate", 0), ("neighbors", 1), ("held_out", 1.0), ("batch", 1)):
        with pytest.raises(ConfigError, match=name):
            create(**{name: value})


def test_patches_of_one_kind_teach_nothing():
    pairs, _ = make_pairs(40)
    everything = torch.ones(40, dtype=torch.bool)
    with pytest.raises(DataError, match="normal and from defective patches, got 40 and 0"):
        train_metric(ScaleNet(6, 4, 4, 4), (pairs, everything), None, 1, 8, 1e-3, False, TrainingSettings(), TrainingRun(), lambda *_: None)
