"""`duet` in its settings, under its switches, and with input it must refuse."""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import pytest
import torch

import mm3dad
from mm3dad import files
from mm3dad.data import degrade
from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.features.condition import NAMES
from mm3dad.memory.budget import LIBRARIES, SAMPLE
from mm3dad.methods import _modality
from mm3dad.metrics import auroc
from mm3dad.scoring.outside import judge_outside
from mm3dad.types import Meta, Sample
from tests.methods.parts import SMALL, make_cloud, make_sample, make_samples


def create(**options):
    return mm3dad.create("duet", **(SMALL | options))


def drop(sample, name):
    return replace(sample, **({"rgb": None} if name == "rgb" else {"xyz": None, "valid": None}))


def rank(detector, good, bad):
    scores = torch.tensor([detector.predict(sample).score for sample in (*good, *bad)])
    return auroc(scores, torch.tensor([0] * len(good) + [1] * len(bad)))


@pytest.fixture(scope="module", autouse=True)
def networks():
    """Load each network once: that takes longer than these tiny fits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_modality, "RGBBranch", functools.cache(_modality.RGBBranch))
        yield


@pytest.fixture(scope="module")
def normal():
    return make_samples(5)


@pytest.fixture(scope="module")
def both(normal):
    return create().fit(normal)


@pytest.fixture(scope="module")
def good():
    return make_samples(4, first=50)


# ---- settings


def test_each_modality_sees_its_own_defects(both, good):
    for defect, seeing, blind in (("stain", "rgb", "xyz"), ("dent", "xyz", "rgb")):
        for number in (60, 61):
            found, plain = both.predict(make_sample(number, defect)), both.predict(make_sample(number))
            assert found.parts[f"{seeing}_score"] > 2 * plain.parts[f"{seeing}_score"]
            assert found.parts[f"{blind}_score"] == plain.parts[f"{blind}_score"]
        assert rank(both, good, make_samples(2, first=60, defect=defect)) == 1


@pytest.mark.parametrize(("modality", "seen", "unseen"), [("rgb", "stain", "dent"), ("xyz", "dent", "stain")])
def test_one_modality_alone(normal, good, modality, seen, unseen):
    detector = create(modalities=modality).fit(normal)
    other = {"rgb": "xyz", "xyz": "rgb"}[modality]
    assert set(detector.predict(good[0]).parts) == {
        f"{modality}_{what}" for what in ("score", "gap", "map", "condition", *NAMES[modality])
    }
    assert rank(detector, good, make_samples(3, first=60, defect=seen)) == 1
    assert detector.predict(make_sample(60, unseen)).score == detector.predict(make_sample(60)).score
    alone = create().fit([drop(sample, other) for sample in normal])  # what the data have decides without the option
    assert alone.predict(drop(good[0], other)).score == detector.predict(good[0]).score
    with pytest.raises(DataError, match=f"has {other}, the model was fitted on {modality}; give one of these"):
        detector.predict(drop(good[0], modality))


def test_a_sample_without_one_modality_is_judged_by_the_other(both, good):
    for present, other in (("rgb", "xyz"), ("xyz", "rgb")):
        whole, part = both.predict(good[0]), both.predict(drop(good[0], other))
        assert part.score == float(part.parts[f"{present}_score"]) == float(whole.parts[f"{present}_score"])
        assert torch.equal(part.map, part.parts[f"{present}_map"]) and part.threshold == both._thresholds[present]
    mixed = [good[0], drop(good[1], "rgb"), drop(good[2], "xyz")]
    assert [p.score for p in both.predict_batch(mixed)] == [both.predict(sample).score for sample in mixed]


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_few_shots(shots, good):
    detector = create().fit(make_samples(shots))
    prediction = detector.predict(good[0])
    assert prediction.calibrated is (shots > 1) and prediction.threshold > 0
    assert rank(detector, good, make_samples(3, first=60, defect="both")) >= 0.9


def test_classes_share_a_model_as_if_each_had_its_own(normal, good):
    others = make_samples(5, category="tile")
    cases = {
        "plate": [*good[:3], *make_samples(3, first=60, defect="both")],
        "tile": [*make_samples(3, first=50, category="tile"), *make_samples(3, first=60, defect="both", category="tile")],
    }
    shared = create(neighbors=3).fit([*normal, *others])
    for samples, (category, tests) in zip((normal, others), cases.items(), strict=True):
        own = create(neighbors=3).fit(samples)
        labels = torch.tensor([sample.label for sample in tests])
        together, alone = (auroc(torch.tensor([d.predict(s).score for s in tests]), labels) for d in (shared, own))
        assert together >= alone - 0.01, category
        # The global bank routes: the matched rows are the class's own.
        for name, part in shared._parts.items():
            patches = part.branch.describe([tests[0]])[0]
            rows = part.bank.normalise(patches.features)
            found, _ = part.bank.similar_samples(rows.mean(0), 3)
            assert all(part.bank.ids[i] == samples[i % 5].meta.id and i // 5 == (category == "tile") for i in found.tolist()), name


# ---- switches


@pytest.mark.parametrize(
    "options",
    [
        {"grouping": True},
        {"aggregate": False, "aggregate_points": True},
        {"local_scale": 0.0, "fusion": "rss"},
        {"global_bank": True},
        {"enhance": True},
        {"rescore": False, "fusion": "sum"},
        {"scale": False},
        {"global_bank": True, "window": 2},
        {"top": 0, "smooth": 0, "coreset": 0, "neighbors": 1},
        {"backbone": "test_vit", "weights": "random", "layers": (1, 3), "enhance": True},
        {"global_bank": True, "enhance": True, "scale": False, "fusion": "sum"},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
)
def test_every_switch_runs_and_still_finds_defects(options, normal, good):
    detector = create(**options).fit(normal[:3])
    bad = make_samples(2, first=60, defect="both")
    assert rank(detector, good[:3], bad) >= 0.9
    prediction = detector.predict(bad[0])
    assert prediction.score >= 0 and float(prediction.map.min()) >= 0 and bool(prediction.map.isfinite().all())


def test_faiss_and_torch_score_alike(normal, good):
    scores = [
        [detector.predict(sample).score for sample in good]
        for detector in (create(search=search).fit(normal[:3]) for search in ("torch", "faiss"))
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_enhancement_copes_with_one_modality_far_from_all_normals(normal):
    """Then one is matched with 10 coreset rows, the other with as many samples as there are."""
    detector = create(enhance=True, coreset=0.2).fit(normal[:4])
    strange = make_sample(60)
    strange = replace(strange, rgb=1 - strange.rgb)
    assert detector.predict(strange).score > detector.predict(make_sample(60)).score


def test_the_order_of_modalities_does_not_matter(normal, good, both, tmp_path):
    detector = create(modalities="xyz,rgb").fit(normal)
    detector.save(tmp_path)
    assert mm3dad.load(tmp_path).predict(good[0]).score == detector.predict(good[0]).score == both.predict(good[0]).score


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": "rgb,depth"}, "modalities must be of rgb, xyz, got 'depth'"),
        ({"image_size": 8}, "option image_size must lie in 32 to 4096, got 8"),
        ({"max_points": 5}, "option max_points must lie in 128"),
        ({"centers": 0}, "option centers must lie in 1"),
        ({"group_size": 3}, "option group_size must lie in 4"),
        ({"neighbors": 0}, "option neighbors must lie in 1"),
        ({"folds": 1}, "option folds must lie in 2"),
        ({"coreset": 1.5}, "option coreset must lie in 0.0 to 1.0, got 1.5"),
        ({"top": float("nan")}, "option top must lie in 0.0 to 1.0, got nan"),
        ({"smooth": -1}, "option smooth must lie in 0.0"),
        ({"false_alarms": 0}, "option false_alarms must lie in"),
        ({"memory_budget": -1}, "option memory_budget must lie in 0.0"),
        ({"seed": -1}, "option seed must lie in 0"),
        ({"window": -1}, "option window must be 0 or more cells, or none, got -1"),
        ({"window": 2}, "needs global_bank=true"),
        ({"fusion": "mean"}, "option fusion must be one of max, sum, rss, got 'mean'"),
        ({"points": "pointnet"}, "option points must be one of fpfh, point_mae"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        create(**options)


# ---- thresholds and memory


def test_validation_moves_the_threshold_and_nothing_else(both, normal, good):
    validated = create(false_alarms=0.2).fit(normal, validation=make_samples(5, first=80))
    for sample in (good[0], make_sample(60, "both")):
        a, b = both.predict(sample), validated.predict(sample)
        assert a.score == b.score and torch.equal(a.map, b.map) and a.threshold != b.threshold
    own = [validated.predict(sample).score for sample in make_samples(5, first=80)]
    assert validated.predict(good[0]).threshold == pytest.approx(max(own))
    assert create().fit(normal, validation=[]).predict(good[0]).threshold == both.predict(good[0]).threshold


def test_a_validation_sample_without_a_modality_is_named(normal):
    with pytest.raises(DataError, match=r"validation sample 'train/good/080' has no xyz; complete it"):
        create().fit(normal[:2], validation=[drop(make_sample(80), "xyz")])


def test_a_tight_budget_thins_the_bank_and_still_finds_defects(both, normal, good):
    fixed = LIBRARIES + SAMPLE + both._parts["rgb"].branch.parameter_bytes
    thinned = create(memory_budget=(fixed + both.bank_bytes) / 2**30).fit(normal)
    for part in thinned._parts.values():
        channel, row = part.bank.work
        cost = sum(value.numel() * value.element_size() for value in part.state()[0].values())
        assert cost + len(part.bank.rows) * (channel * part.bank.rows.shape[1] + row) <= both.bank_bytes / 2
    assert thinned.bank_bytes < 0.5 * both.bank_bytes
    assert rank(thinned, good, make_samples(3, first=60, defect="both")) == 1
    with pytest.raises(ConfigError, match=r"leaves a bank \d+ bytes, which do not hold one row for each of 5 samples; raise it by [\d,]+"):
        create(memory_budget=(fixed + 100) / 2**30).fit(normal)
    with pytest.raises(ConfigError, match=r"memory_budget of 0.5 GiB is less than libraries, network and one sample take, 0.8\d* GiB"):
        create(memory_budget=0.5).fit(normal)


def test_the_bytes_of_the_bank_are_told_before_it_is_full(normal):
    told = []
    create().fit(normal, progress=lambda stage, done, total: told.append((done, stage)))
    assert any("MiB" in stage and done < len(normal) for done, stage in told)


# ---- input unlike all that was fitted on


def test_says_when_a_sample_lies_outside(good):
    both = create(outside_rate=0.01).fit(make_samples(12))
    for sample in good:
        prediction = both.predict(sample)
        assert prediction.is_outside is False and 2 / 13 <= prediction.outside_p_value <= 1
    for strange, blind in (
        (degrade.scale_cloud(good[0], 1000), "rgb"),
        (degrade.add_depth_noise(good[0], 2e-3), "rgb"),
        (degrade.warm(good[0], 0.8), "xyz"),
        (degrade.occlude(good[0], 0.3), None),
    ):
        prediction = both.predict(strange)
        assert prediction.is_outside is True and prediction.outside_p_value == pytest.approx(2 / 13)
        if blind:  # the other modality is as it was
            assert prediction.parts[f"{blind}_gap"] == both.predict(good[0]).parts[f"{blind}_gap"]
            assert both.predict(drop(strange, {"rgb": "xyz", "xyz": "rgb"}[blind])).is_outside is False


def test_one_sample_does_not_tell_what_lies_outside(normal, good):
    prediction = create().fit(normal[:1]).predict(degrade.scale_cloud(good[0], 1000))
    assert prediction.is_outside is None and prediction.outside_p_value is None and "rgb_gap" in prediction.parts


def test_a_model_from_before_the_flag_finds_its_gaps_again(both, good, tmp_path):
    both.save(tmp_path)
    model = files.read_json(tmp_path / "model.json")
    tensors = files.read_sealed(tmp_path / "model.json", model.pop("tensors"))
    for name in ("rgb", "xyz"):
        tensors.pop(f"{name}.gaps")
        tensors.pop(f"{name}.conditions")
        model["values"]["parts"][name]["bank"]["reach"] = both._parts[name].bank.reach
    del model["config"]["outside_rate"]
    files.write_sealed(tmp_path / "model.json", model, tensors)
    old = mm3dad.load(tmp_path)
    for name, part in both._parts.items():
        torch.testing.assert_close(old._parts[name].bank.gaps, part.bank.gaps, rtol=1e-6, atol=0)
    prediction = old.predict(good[0])
    assert not {"rgb_condition", "rgb_brightness", "xyz_condition"} & prediction.parts.keys()
    gaps = [float(prediction.parts[f"{name}_gap"]) for name in ("rgb", "xyz")]
    by_descriptors = judge_outside(gaps, [old._parts[name].bank.gaps for name in ("rgb", "xyz")], 0.05)
    assert (prediction.outside_p_value, prediction.is_outside) == by_descriptors
    old.add(make_samples(1, first=30))  # whose condition alone says nothing
    assert "rgb_condition" not in old.predict(good[0]).parts


def test_conditions_are_kept_grown_and_shrunk(normal, good, tmp_path):
    detector = create().fit(normal[:4])
    before = detector.predict(good[0]).parts
    detector.save(tmp_path / "model")
    loaded = mm3dad.load(tmp_path / "model")
    for name in ("rgb", "xyz"):
        own, kept = (one._parts[name].conditions for one in (detector, loaded))
        assert torch.equal(own.rows, kept.rows) and torch.equal(own.gaps, kept.gaps) and own.rows.shape == (4, len(NAMES[name]))
    assert loaded.predict(good[0]).parts["rgb_condition"] == before["rgb_condition"]
    loaded.add(normal[4:])
    assert all(len(part.conditions.rows) == len(part.conditions.gaps) == 5 for part in loaded._parts.values())
    loaded.forget([normal[4].meta.id])
    assert loaded.predict(good[0]).parts["xyz_condition"] == before["xyz_condition"]
    model = files.read_json(tmp_path / "model" / "model.json")
    tensors = files.read_sealed(tmp_path / "model" / "model.json", model.pop("tensors"))
    tensors["rgb.conditions"] = tensors["rgb.conditions"][1:]
    files.write_sealed(tmp_path / "model" / "model.json", model, tensors)
    with pytest.raises(ModelError, match=r"rgb.conditions does not fit the bank; the model is damaged, fit and save it again"):
        mm3dad.load(tmp_path / "model")


def test_lost_points_and_a_dimmed_lamp_lie_outside(good):
    both = create(outside_rate=0.05).fit(make_samples(40))
    calm = both.predict(good[0])
    assert calm.is_outside is False
    for strange, name in ((degrade.drop_points(good[0], 0.2), "xyz"), (degrade.expose(good[0], -1), "rgb")):
        prediction = both.predict(strange)
        assert prediction.is_outside is True
        assert prediction.parts[f"{name}_condition"] > both._parts[name].conditions.gaps.max()


def test_too_few_validation_samples_are_joined_by_held_out_ones(normal, good):
    validation = make_samples(3, first=80)
    few, many = (create(false_alarms=rate).fit(normal, validation=validation) for rate in (0.2, 0.25))
    held = few.describe_normals()
    scores = {name: [float(few.predict(sample).parts[f"{name}_score"]) for sample in validation] for name in ("rgb", "xyz")}
    for name in ("rgb", "xyz"):
        both = sorted(held[f"{name}_score"].tolist() + scores[name])
        assert few._thresholds[name] == pytest.approx(both[7], rel=1e-6)  # of 5 + 3, ceil(9 * 0.8) = 8
        assert many._thresholds[name] == pytest.approx(max(scores[name]), rel=1e-6)  # three promise a quarter by themselves
    four = create(false_alarms=0.2).fit(normal[:4], validation=validation)  # less than a fold each: another model's scores
    assert four._thresholds["rgb"] == pytest.approx(max(float(four.predict(one).parts["rgb_score"]) for one in validation), rel=1e-6)


# ---- adding samples later


def test_adding_to_a_saved_model(normal, good, tmp_path):
    create().fit(normal[:3]).save(tmp_path / "model")
    loaded = mm3dad.load(tmp_path / "model")
    rows = {name: part.bank.rows.clone() for name, part in loaded._parts.items()}
    assert loaded.add(normal[3:]) is loaded
    for name, part in loaded._parts.items():
        assert part.bank.ids == [sample.meta.id for sample in normal]
        assert torch.equal(part.bank.rows[: len(rows[name])], rows[name])
        assert len(part.bank.held) == len(part.bank.rows) and float(part.bank.held.min()) > 0  # held out anew
        assert len(part.image_scores) == 5
    bad = make_samples(3, first=60, defect="both")
    assert rank(loaded, good, bad) == 1
    seen = loaded.predict(normal[4])
    assert seen.calibrated and seen.score <= seen.threshold
    loaded.save(tmp_path / "model")
    assert mm3dad.load(tmp_path / "model").predict(bad[0]).score == loaded.predict(bad[0]).score


def test_adding_to_a_model_of_one_sample_replaces_its_turned_copies(normal, good):
    detector = create().fit(normal[:1])
    assert all(len(part.bank.ids) == 8 for part in detector._parts.values()) and not detector.predict(good[0]).calibrated
    detector.add(normal[1:4])
    assert all(len(part.bank.ids) == 4 for part in detector._parts.values()) and detector.predict(good[0]).calibrated


def test_adding_what_does_not_fit_leaves_the_model_as_it_was(normal, good):
    detector = create().fit(normal[:3])
    before = detector.predict(good[0])
    broken = Sample(normal[4].rgb, torch.full_like(normal[4].xyz, torch.nan), meta=Meta("blind"))
    for samples, message in (
        ([], "at least one normal sample to add, got none"),
        ([normal[3], drop(normal[4], "xyz")], "training sample 'train/good/004' has no xyz"),
        ([normal[3], broken], "sample 'blind': the cloud has no valid point"),
    ):
        with pytest.raises(DataError, match=message):
            detector.add(samples)
        after = detector.predict(good[0])
        assert (after.score, after.threshold) == (before.score, before.threshold) and torch.equal(after.map, before.map)
    detector.add(normal[3:4])
    assert all(len(part.bank.ids) == 4 for part in detector._parts.values())


def test_forgetting_what_was_added_gives_the_old_model_back(normal, good):
    detector = create().fit(normal[:3])
    before = detector.predict(good[0])
    detector.add(normal[3:])
    assert detector.forget([sample.meta.id for sample in normal[3:]]) is detector
    after = detector.predict(good[0])
    assert (after.score, after.threshold, after.outside_p_value) == (before.score, before.threshold, before.outside_p_value)
    assert torch.equal(after.map, before.map) and all(len(part.bank.ids) == 3 for part in detector._parts.values())


def test_forgetting_too_much_or_the_unknown_leaves_the_model_as_it_was(normal, good):
    detector = create().fit(normal[:3])
    before = detector.predict(good[0])
    names = [sample.meta.id for sample in normal]
    for ids, message in (
        (names[3:4], "got 'train/good/003'; fit.json"),
        (names[:2], "at least 2 samples must stay .* 1 would; forget fewer"),
    ):
        with pytest.raises(DataError, match=message):
            detector.forget(ids)
        assert detector.predict(good[0]).score == before.score
    detector.forget(names[1:2])
    assert all(part.bank.ids == [names[0], names[2]] for part in detector._parts.values())


# ---- input


def test_a_training_sample_without_a_modality_is_named(normal):
    with pytest.raises(DataError, match=r"training sample 'train/good/001' has no xyz; complete it, or fit with modalities=rgb"):
        create().fit([normal[0], drop(normal[1], "xyz")])
    with pytest.raises(DataError, match=r"training sample 'train/good/000' has no rgb; complete it, or fit with modalities=xyz"):
        create(modalities="rgb").fit([drop(normal[0], "rgb")])


def test_clouds_with_too_few_points(both, normal):
    blind = Sample(normal[0].rgb, torch.full_like(normal[0].xyz, torch.nan), meta=Meta("blind"))
    sparse = normal[0].xyz.clone()
    sparse[:, 3:] = 0
    sparse[:, :, 7:] = 0
    few = Sample(normal[0].rgb, sparse, meta=Meta("sparse"))
    for sample, message in (
        (blind, "sample 'blind': the cloud has no valid point; check the sensor"),
        (few, "sample 'sparse': the cloud has 17 valid points, fewer than one group of 20"),
    ):
        with pytest.raises(DataError, match=message):
            create(group_size=20).fit([normal[1], sample])
    with pytest.raises(DataError, match="sample 'blind'"):
        both.predict(blind)


def test_clouds_without_a_grid():
    clouds = [make_cloud(seed) for seed in range(4)]
    detector = create().fit(clouds)
    good, bad = [make_cloud(seed) for seed in (50, 51)], [make_cloud(seed, defect="dent") for seed in (60, 61)]
    assert rank(detector, good, bad) == 1
    prediction = detector.predict(bad[0])
    assert prediction.map.shape == (1, 400) and prediction.calibrated
    assert create().fit(clouds[:1]).predict(bad[0]).map.shape == (1, 400)


def test_equal_samples_fit(normal):
    detector = create().fit([normal[0]] * 3)
    same, other = detector.predict(normal[0]), detector.predict(make_sample(60, "both"))
    assert torch.isfinite(torch.tensor([same.score, other.score])).all() and other.score > same.score


def test_a_step_on_plates_that_are_all_flat_is_found():
    """Flat plates have next to no spread of descriptors, so that a step is far beyond what half precision holds."""
    plates = [make_sample(number, modalities=("xyz",)) for number in range(5)]
    for number, sample in enumerate(plates):
        noise = torch.randn(sample.size, generator=torch.Generator().manual_seed(number))
        sample.xyz[2] = torch.where(sample.valid, 0.3 + 1e-5 * noise, sample.xyz[2])
    height, width = plates[4].size
    plates[4].xyz[2, height // 3 : height // 2, width // 3 : width // 2] -= 0.005
    detector = create(modalities="xyz").fit(plates[:3])
    good, bad = detector.predict_batch(plates[3:])
    assert good.score < bad.score < float("inf") and bool(bad.map.isfinite().all())


def test_a_failed_fit_leaves_no_half_fitted_model(normal):
    detector = create()
    with pytest.raises(DataError):
        detector.fit([normal[0], drop(normal[1], "rgb")])
    assert not detector.is_fitted
    assert detector.fit(normal[:2]).is_fitted


@pytest.mark.gpu
def test_the_gpu_scores_like_the_processor(both, normal, good):
    fast = create(device="cuda").fit(normal)
    bad = make_samples(3, first=60, defect="both")
    assert rank(fast, good, bad) == 1
    slow, quick = both.predict(bad[0]), fast.predict(bad[0])
    assert float(quick.parts["rgb_score"]) == pytest.approx(float(slow.parts["rgb_score"]), rel=0.1)
    assert float(quick.parts["xyz_score"]) == float(slow.parts["xyz_score"])
    assert fast.predict(drop(good[0], "rgb")).score >= 0


def test_no_thread_count_changes_hands(both, good):
    threads = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    both.predict(good[0])
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == threads
