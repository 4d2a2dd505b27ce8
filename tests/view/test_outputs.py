from __future__ import annotations

import pytest

from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.run.evaluate import evaluate
from mm3dad.run.predict import predict_inputs
from mm3dad.view.outputs import read_output
from tests.run import toy

toy.register()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The --out folders of an evaluation and of predictions, each with the file that names the format."""
    from mm3dad.run.fit import fit_detector

    root = tmp_path_factory.mktemp("results")
    tree = toy.write_tree(root / "tree", ["nut"], train=2)
    evaluate("toy", "mvtec3d", tree, out=root / "evaluate", eval_size=16)
    fit_detector("toy", "mvtec3d", tree, root / "model")
    predict_inputs(root / "model", [tree / "nut/test"], root / "predict")
    return root


@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_results_of_an_older_version_are_read_and_of_a_newer_one_refused(results, kind):
    path = results / kind / f"{kind}.json"
    content = files.read_json(path)
    assert content["format"] == files.RESULT_FORMAT
    rows = [row for run in read_output(results / kind).runs for row in run.rows]
    assert len(rows) == 6
    files.write_json(path, {name: value for name, value in content.items() if name != "format"})  # as 0.1.0's first results were
    assert [row for run in read_output(results / kind).runs for row in run.rows] == rows
    for foreign in (files.RESULT_FORMAT + 1, "two"):
        files.write_json(path, {**content, "format": foreign})
        with pytest.raises(DataError, match=f"has format {foreign}, this version reads up to {files.RESULT_FORMAT}; update mm3dad"):
            read_output(results / kind)
