from __future__ import annotations

import pytest
import torch

from mm3dad import files
from mm3dad.errors import ConfigError, DataError
from mm3dad.run.explain import Explainer
from mm3dad.view import view_path
from mm3dad.view.browse import KINDS, filter_entries, list_entries, pair_entries, pick_entry, rescore_entries
from mm3dad.view.layers import Layers
from tests.view.parts import make_evaluation, make_rows, make_sample, write_sample


@pytest.fixture
def results(tmp_path):
    make_evaluation(tmp_path / "data", tmp_path / "out")
    return tmp_path / "out"


def test_results_come_highest_first_with_their_verdict(results):
    entries = list_entries(results)
    assert len(entries) == 6 and [entry.score for entry in entries] == sorted((entry.score for entry in entries), reverse=True)
    kinds = {entry.id: entry.kind for entry in entries}
    assert kinds["test/dent/001"] == "found" and kinds["test/good/000"] == "passed"
    missed = next(entry for entry in entries if entry.label == 1)
    missed.score = 0.1
    assert missed.kind == "missed" and set(KINDS) >= set(kinds.values())
    missed.label = 0
    assert missed.kind == "passed"
    missed.score = 9.0
    assert missed.kind == "false alarm"
    missed.threshold = None
    assert missed.kind is None


def test_predictions_without_labels_take_them_from_the_folder(tmp_path):
    rows = [{**row, "label": None, "defect": None} for row in make_rows(tmp_path / "data", tmp_path / "out")]
    files.write_json(tmp_path / "out" / "predictions.json", rows)
    assert {entry.id: entry.label for entry in list_entries(tmp_path / "out")}["test/good/000"] == 0
    assert {entry.id: entry.kind for entry in list_entries(tmp_path / "out")}["test/cut/002"] == "found"


def test_filters(results):
    entries = list_entries(results)
    assert {entry.defect for entry in filter_entries(entries, defect="cut")} == {"cut"}
    assert {entry.kind for entry in filter_entries(entries, kind="found")} == {"found"}
    middle = entries[2].score
    assert len(filter_entries(entries, least=middle)) == 3 and filter_entries(entries) == entries
    assert filter_entries(entries, defect="cut", kind="passed") == []


def test_first_look_is_at_the_highest_score_or_a_defect(tmp_path, results):
    entries = list_entries(results)
    assert pick_entry(entries, results) is entries[0]
    assert pick_entry(entries, results, "test/good/000").id == "test/good/000"
    tree = list_entries(tmp_path / "data")
    assert pick_entry(tree, tmp_path / "data").label == 1 and tree[0].score is None
    with pytest.raises(DataError, match="did you mean"):
        pick_entry(entries, results, "test/good/0000")


def test_an_entry_reads_its_maps_and_forgets_them(results):
    entry = list_entries(results)[0]
    scene = entry.open()
    assert list(scene.maps) == ["map", "rgb_map", "xyz_map"] and scene.size == (40, 40) and scene.groups is None
    assert entry.explain(3, 3) is None and entry.explain_peaks() == []
    assert torch.equal(entry.sample.mask, torch.from_numpy(scene.mask)) and "sample" in entry.__dict__
    entry.close()
    assert "sample" not in entry.__dict__ and (entry.open().map == scene.map).all()


def test_predictions_whose_maps_are_gone_or_damaged_still_show_the_cloud(tmp_path, results):
    for number, path in enumerate(sorted(results.rglob("*.safetensors"))):
        path.unlink() if number % 2 else path.write_bytes(b"damaged")
    for entry in list_entries(results)[:2]:
        scene = entry.open()
        assert scene.maps == {} and scene.map is None and scene.valid.any() and entry.score is not None
        assert list(Layers(scene)) == ["RGB", "height", "normals", "curvature", "ground truth"]
    page, picture = view_path(results, tmp_path / "a.html", tmp_path / "a.png")
    assert page.stat().st_size > 10_000 and picture.stat().st_size > 1000


def test_a_model_gives_scores_groups_and_reasons(plates):
    root, model = plates
    entry = pick_entry(list_entries(root / "test", Explainer(model)), root)
    scene = entry.open()
    assert entry.kind == "found" and scene.groups.max() == 31 and "xyz_map" in scene.maps
    whys = entry.explain_peaks()
    assert len(whys) == 3
    first = whys[0]
    assert scene.mask[max(0, first.row - 6) : first.row + 7, max(0, first.column - 6) : first.column + 7].any()
    assert first.group == scene.groups[first.row, first.column] and first.beside and first.group not in first.beside
    assert [tile.caption.split(":")[0] for tile in first.tiles] == ["this place", "RGB", "RGB", "3D", "3D"]
    assert all(len(tile.pictures) == 2 for tile in first.tiles)
    facts = dict(first.facts)
    assert f"3D group {first.group}" in facts and facts[f"3D group {first.group}"].startswith("score ")
    assert len(facts["RGB beside it"].split(", ")) in (3, 5, 8)  # in a corner, at a border, inside


def test_pairs_are_made_by_category_and_id(results, plates):
    entries = list_entries(results)
    assert len(pair_entries(entries, list_entries(results))) == 6
    again = rescore_entries(entries, Explainer(plates[1]))
    assert again[0].score is None and again[0].id == entries[0].id and entries[0].score is not None
    with pytest.raises(DataError, match="no sample in common"):
        pair_entries(entries, list_entries(plates[0]))


def test_a_model_that_explains_nothing_is_refused(tmp_path):
    import mm3dad
    from tests.methods.parts import make_samples

    mm3dad.create("btf", max_points=600, image_size=64).fit(make_samples(2)).save(tmp_path / "model")
    paths = write_sample(tmp_path, make_sample())
    (entry,) = list_entries(paths["xyz"], Explainer(tmp_path / "model"))
    with pytest.raises(ConfigError, match="btf does not explain"):
        entry.open()
