"""The robustness benchmark: resumes, refuses another setting, contaminates as it says, and its page says what was measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import robustness
from benchmarks.robustness import FAMILIES, contaminate, hold_back, measure
from benchmarks.robustness_page import judge_promise, write_robustness
from mm3dad import files
from mm3dad.data.synthetic import write_dataset
from mm3dad.errors import DataError, ModelError
from tests.methods.parts import make_sample, make_samples
from tests.run import toy

toy.register()
TITLES = {name: (one.title, one.levels, one.words) for name, one in FAMILIES.items()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_dataset(root, categories=["cookie"], size=96, counts={"train": 4, "validation": 1, "good": 2, "defect": 1})
    return root


@pytest.mark.parametrize("name", FAMILIES)
def test_every_fault_and_level_gives_a_sample(name):
    family, sample = FAMILIES[name], make_sample(1, "both")
    assert len(family.levels) == len(family.words)
    for level in family.levels if family.change else ():
        changed = family.change(sample, level)
        assert changed.meta.paths == {} and changed.meta.id == sample.meta.id and changed.label == 1


def test_noise_of_factor_one_and_faults_of_strength_none_change_nothing():
    sample = make_sample(1)
    for changed in (robustness.add_noise(sample, 1), robustness.combine_faults(sample, 0)):
        assert (changed.rgb == sample.rgb).all() and (changed.xyz - sample.xyz).abs().max() < 1e-7


def test_contamination_takes_all_kinds_in_turn_and_leaves_the_rest():
    samples = [*make_samples(3), *make_samples(4, first=10, defect="stain"), *make_samples(2, first=20, defect="dent")]
    taken, rest = hold_back(samples, 3)
    assert [sample.meta.defect for sample in taken] == ["stain", "dent", "stain"] and len(rest) == 6
    assert not {sample.meta.id for sample in taken} & {sample.meta.id for sample in rest}
    with pytest.raises(DataError, match="takes 6 defects"):
        hold_back(samples, 6)
    mixed = contaminate(samples[:3], taken, 0.4)
    assert len(mixed) == 5 and sum(sample.label for sample in mixed) / len(mixed) == 0.4


def test_a_second_call_measures_nothing_and_another_setting_is_refused(tree, tmp_path):
    path = tmp_path / "toy" / "cookie.json"
    measure("toy", tree, "cookie", ["combined", "dead"], {}, path)
    fits, kept = toy.Toy.fits, path.read_text()
    measure("toy", tree, "cookie", ["combined", "dead"], {}, path)
    assert toy.Toy.fits == fits and path.read_text() == kept
    measure("toy", tree, "cookie", ["combined", "dead", "contaminated"], {}, path)  # 20 % of 5 is 1 of 7 defects
    rows = files.read_json(path)["rows"]
    assert toy.Toy.fits == fits + 3 and len(rows["contaminated 0.2"]) == len(rows["clean"]) - 1
    with pytest.raises(ModelError, match="another setting"):
        measure("toy", tree, "cookie", ["combined"], {"gain": 2.0}, path)


def test_the_page_says_what_was_measured(tmp_path):
    def row(number, label, score, alarm, outside=None, error=None):
        return {"id": str(number), "label": label, "score": score, "is_anomaly": alarm, "is_outside": outside, "error": error}

    clean = [row(0, 0, 1, False, False), row(1, 0, 2, False, False), row(2, 1, 3, True, False), row(3, 1, 4, True, False)]
    worse = [row(0, 0, 1, False, False), row(1, 0, 3.5, True, True), row(2, 1, 3, True, False), row(3, 1, 4, True, False)]
    refused = [{"id": str(number), "label": number // 2, "error": "no cloud"} for number in range(4)]
    rows = {"clean": clean, "missing 0.2": worse, "missing 0.4": worse, "missing 0.6": refused}
    files.write_json(tmp_path / "out/duet/cookie.json", {"identity": {"method": "duet", "category": "cookie"}, "rows": rows})
    write_robustness(tmp_path / "out", tmp_path / "robustness.md", TITLES)
    page = (tmp_path / "robustness.md").read_text()
    assert "| clean | duet | 1.000 | - | 0 of 2 | 0 of 2 | 0 of 2 | - | - | none |" in page
    assert "| 20 % | duet | 0.750 | -0.250 | 1 of 2 | 0 of 2 | 1 of 2 | - | - | none |" in page
    assert "| 60 % | duet | - | - | - | - | - | - | - | 4 of 4 |" in page
    assert "Mean over cookie." in page and "## A sensor dies" not in page
    picture = (tmp_path / "images/robustness.svg").read_text()
    assert picture.startswith("<svg") and "missing points" in picture and json.dumps("duet")[1:-1] in picture


def test_false_alarms_are_kept_flagged_or_neither():
    content = {"identity": {"config": {"false_alarms": 0.01, "outside_rate": 0.05}}, "normals": 8}

    def judge(alarms, outside, **changed):
        told = [None if outside is None else i < outside for i in range(20)]
        rows = [{"error": None, "label": 0, "is_anomaly": i < alarms, "is_outside": told[i]} for i in range(20)]
        rows.append({"error": None, "label": 1, "is_anomaly": True, "is_outside": True})
        return judge_promise(rows, {**content, **changed})

    # 8 validation parts promise up to 1 - 0.025 ** (1 / 8) = 0.37; 12 of 20 alarms have an interval from 0.36, 13 from 0.41.
    assert judge(0, 0) == judge(12, 0) == "kept" and judge(13, 0) == judge(13, 3) == judge(13, None) == "neither"
    assert judge(13, 4) == "flagged" and judge(12, 20) == "kept"
    moved = {"recording": {"rgb_brightness": [i / 20 for i in range(40)]}}
    assert judge(13, 0, **moved) == "neither"  # its parts do not say how they were recorded
    parts = [{"error": None, "label": 0, "is_anomaly": True, "is_outside": False} for _ in range(20)]
    for number, part in enumerate(parts):
        part["recording"] = {"rgb_brightness": number / 10}
    assert judge_promise(parts, {**content, **moved}) == "neither"
    for part in parts:
        part["recording"]["rgb_brightness"] += 0.8
    assert judge_promise(parts, {**content, **moved}) == "run flagged"
    assert judge(20, 20, normals=None) is None and judge(20, 20, identity={}) is None
    assert judge(6, 0, normals=400) == "neither"
    assert judge_promise([{"error": "no cloud", "label": 0}], content) is None
