from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mm3dad.data.single import find_record, read_sample
from mm3dad.errors import DataError
from mm3dad.types import Meta
from mm3dad.view.browse import list_entries
from mm3dad.view.preview import read_preview
from mm3dad.view.scene import build_scene
from tests.view.parts import make_map, make_rows, make_sample, write_sample

LIGHT = """
import json, sys, time
from mm3dad.cli import main
status = main(["view", sys.argv[1], "--html", sys.argv[2]])
print(json.dumps([status, "torch" in sys.modules, time.process_time()]))
"""


def look(path, target) -> tuple[bool, float]:
    """Show a path in a fresh process; return whether torch was loaded, and the CPU seconds from its start."""
    words = [sys.executable, "-c", LIGHT, str(path), str(target)]
    result = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    status, is_heavy, seconds = json.loads(result.stdout.splitlines()[-1])
    assert status == 0, result.stderr
    return is_heavy, seconds


def test_it_is_the_scene_of_the_full_reader(tmp_path):
    sample = make_sample()
    sample.xyz[:, 5, 6] = float("nan")
    paths = write_sample(tmp_path, sample)
    (entry,) = list_entries(paths["rgb"])
    maps = {"rgb_map": make_map(sample)[::2, ::2].numpy(), "map": make_map(sample).numpy()}
    quick = read_preview(entry.paths, maps, Meta(entry.id, entry.category, entry.defect, entry.paths), entry.label)
    full = build_scene(read_sample(paths["rgb"]), maps)
    assert quick.meta == full.meta and quick.size == full.size and list(quick.maps) == list(full.maps) and not quick.valid[5, 6]
    for name in ("rgb", "xyz", "valid", "mask"):
        first, second = getattr(quick, name), getattr(full, name)
        assert first.dtype == second.dtype and (first == second).all(), name
    assert all((quick.maps[name] == full.maps[name]).all() for name in maps)


def test_a_good_part_without_a_truth_has_an_empty_one(tmp_path):
    paths = write_sample(tmp_path, make_sample(defect="good", name="test/good/000"))
    os.remove(paths.pop("gt"))
    assert not read_preview(paths, {}, Meta(), 0).mask.any() and read_preview(paths, {}, Meta(), None).mask is None


def test_what_only_the_full_reader_can_say_is_left_to_it(tmp_path):
    sample = make_sample()
    paths = write_sample(tmp_path, sample)
    assert read_preview({"rgb": paths["rgb"]}, {}, Meta(), 1) is None
    assert read_preview({**paths, "depth": "d.png"}, {}, Meta(), 1) is None
    assert read_preview({**paths, "gt": "gone.png"}, {}, Meta(), 1) is None
    assert read_preview(paths, {}, Meta(), 0) is None  # a truth that marks a good part
    Image.new("RGB", (39, 40)).save(paths["rgb"])
    assert read_preview(paths, {}, Meta(), 1) is None
    (entry,) = list_entries(paths["xyz"])
    with pytest.raises(DataError, match="expected one size"):
        entry.preview()
    sample.xyz = sample.xyz * 1000
    write_sample(tmp_path, sample)
    with pytest.raises(DataError, match="at most 10 m"):
        list_entries(paths["xyz"])[0].preview()


@pytest.mark.parametrize("kind", ["sample", "results"])
def test_a_first_look_loads_no_torch(tmp_path, kind):
    rows = make_rows(tmp_path / "data", tmp_path / "out")
    (tmp_path / "out" / "predictions.json").write_text(json.dumps(rows))
    path = rows[1]["paths"]["rgb"] if kind == "sample" else tmp_path / "out"
    assert look(path, tmp_path / "a.html")[0] is False


def test_first_page_of_a_large_sample_is_there_within_a_second_and_a_half(tmp_path):
    """CPU seconds from the start of the process: the wall clock of a busy machine says nothing."""
    paths = write_sample(tmp_path, make_sample(800))
    assert min(look(paths["rgb"], tmp_path / "a.html")[1] for _ in range(2)) < 1.5


def test_maps_of_results_keep_their_values(tmp_path):
    from mm3dad.view.outputs import read_maps, read_output

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.json").write_text(json.dumps(make_rows(tmp_path / "data", tmp_path / "out")))
    (run,) = read_output(tmp_path / "out").runs
    maps = read_maps(run.rows[1])
    assert maps["map"].dtype == np.float32 and maps["mask"].dtype == bool
    assert torch.equal(torch.from_numpy(maps["mask"]), read_sample(find_record(run.rows[1].paths["rgb"]).paths["rgb"]).mask[::2, ::2])
