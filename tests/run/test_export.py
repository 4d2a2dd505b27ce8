from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import mm3dad
from mm3dad.errors import ConfigError, MissingPackageError, ModelError
from mm3dad.features.branches import graph_points
from mm3dad.features.rgb import RGBExtractor
from mm3dad.nets.graph import Graph
from mm3dad.nets.point_transformer import PointTransformer
from mm3dad.run import export
from tests.run import toy

toy.register()


@pytest.fixture(scope="module")
def duet(tmp_path_factory):
    tree = toy.write_tree(tmp_path_factory.mktemp("tree"), ["nut"], train=2)
    options = {"backbone": "test_resnet", "weights": "random", "image_size": 64, "layers": (0, 2), "modalities": "rgb"}
    detector = mm3dad.create("duet", **options)
    detector.fit(mm3dad.open_dataset("mvtec3d", tree, "nut", "train"))
    return detector.save(tree.parent / "duet")


def test_the_file_gives_what_the_extractor_gives_and_says_what_it_takes(duet, tmp_path):
    result = export.export_model(duet, tmp_path / "out", (64, 96))
    assert result == json.loads((tmp_path / "out/export.json").read_text())
    (row,) = result["graphs"]
    assert row["largest_difference"] <= row["tolerance"] and row["layers"] == [0, 2]
    detector = mm3dad.load(duet)
    extractor = detector._parts["rgb"].branch.extractor
    shape = extractor.input_size((64, 96), 64)
    assert row["inputs"] == {"image": [1, 3, *shape]}
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(9))
    session = onnxruntime.InferenceSession(tmp_path / "out/rgb.onnx")
    found = session.run(row["outputs"], {"image": image[None].numpy()})
    for mine, theirs in zip(extractor.extract([image])[0], found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs[0]), mine, rtol=1e-4, atol=1e-4 * float(mine.abs().max()))
    onnx.checker.check_model(onnx.load(tmp_path / "out/rgb.onnx"), full_check=True)


def test_a_transformer_and_a_point_encoder_agree_too():
    torch.manual_seed(0)
    graphs = [
        RGBExtractor("test_vit", (-1,), "random").graph((32, 32), 32),
        graph_points(PointTransformer(depth=2, dim=24, heads=2), (0, 1), groups=5, size=8),
    ]
    for graph in graphs:
        assert export.compare(graph, export.trace(graph)) <= export.TOLERANCE


class Plus(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        return (x + self.number,)


def test_a_file_that_disagrees_is_not_written(tmp_path):
    content = export.trace(Graph("rgb", Plus(1.0).eval(), {"x": torch.ones(2)}, ("y",)))
    for wrong in (1.001, float("nan")):
        graph = Graph("rgb", Plus(wrong), {"x": torch.ones(2)}, ("y",))
        with pytest.raises(ModelError, match="disagrees with torch in y"):
            export.compare(graph, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace", lambda graph: content)
        with pytest.raises(ModelError, match="disagrees"):
            export._write_graph(Graph("rgb", Plus(2.0), {"x": torch.ones(2)}, ("y",)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said(duet, model, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="toy has no extractor that can be exported"):
        export.export_model(model, tmp_path / "out")
    with pytest.raises(ModelError, match=r"model\.json"):
        export.export_model(tmp_path, tmp_path / "out")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mm3dad\[onnx\]'"):
        export.export_model(duet, tmp_path / "out")
    assert not (tmp_path / "out").exists()
