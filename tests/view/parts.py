"""Small made-up samples and result folders, no files of real data."""

from __future__ import annotations

import html.parser
import re

import numpy as np
import torch
from PIL import Image

from mm3dad import files
from mm3dad.types import Meta, Sample

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(html.parser.HTMLParser):
    """Parses a page, checks that its elements are nested properly, and keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.raw = text
        self.feed(text)
        self.close()
        assert self.open == [], f"elements that were not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def check_offline(text: str) -> Page:
    """Nothing on the page may be fetched from elsewhere."""
    page = Page(text)
    for _, attrs in page.tags:
        for key in ("src", "href", "action", "data", "srcset"):
            assert (attrs.get(key) or "data:").startswith(("data:", "#")), attrs
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest|import\(", re.sub(r"base64,[^'\"]*", "", text))
    return page


def make_sample(size: int = 40, defect: str | None = "dent", name: str = "test/dent/000", seed: int = 0) -> Sample:
    """A square plate 1 m in front of the sensor, 10 cm wide; a defect is a bump toward the sensor in the upper left."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-0.05, 0.05, size), torch.linspace(-0.05, 0.05, size), indexing="ij")
    mask = ((x + 0.025).hypot(y + 0.025) < 0.01) if defect not in (None, "good") else torch.zeros(size, size, dtype=torch.bool)
    z = 1.0 - 0.01 * mask + 0.0005 * torch.rand(size, size, generator=generator)
    rgb = torch.rand(3, size, size, generator=generator) * 0.2 + 0.4
    valid = torch.ones(size, size, dtype=torch.bool)
    valid[-2:, -2:] = False
    label = None if defect is None else int(defect != "good")
    return Sample(rgb, torch.stack([x, y, z]), valid, mask, label, Meta(name, "plate", defect))


def make_map(sample: Sample, height: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return height * sample.mask.float() + torch.rand(*sample.size, generator=generator)


def write_sample(root, sample: Sample) -> dict[str, str]:
    """Write a sample into the MVTec 3D-AD layout and return its paths."""
    import tifffile

    split, defect, stem = sample.meta.id.split("/")
    paths = {}
    for role, suffix in (("rgb", "png"), ("xyz", "tiff"), ("gt", "png")):
        path = root / sample.meta.category / split / defect / role / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        paths[role] = str(path)
    Image.fromarray((sample.rgb.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(paths["rgb"])
    tifffile.imwrite(paths["xyz"], sample.xyz.permute(1, 2, 0).contiguous().numpy(), photometric="rgb")
    Image.fromarray(sample.mask.numpy().astype(np.uint8) * 255).save(paths["gt"])
    return paths


def make_rows(root, folder, count: int = 6, threshold: float | None = 2.0) -> list[dict]:
    """Write samples and maps; return the rows of a run.json."""
    rows = []
    for index in range(count):
        defect = ("good", "dent", "cut")[index % 3]
        sample = make_sample(defect=defect, name=f"test/{defect}/{index:03d}", seed=index)
        scores = make_map(sample, 3.0 + index)
        name = f"maps/{sample.meta.id.replace('/', '__')}.safetensors"
        small = scores[::2, ::2].contiguous()
        files.write_tensors(folder / name, {"map": small, "mask": sample.mask[::2, ::2].contiguous(), "rgb_map": small, "xyz_map": small})
        rows.append(
            {
                "id": sample.meta.id,
                "label": sample.label,
                "defect": defect,
                "score": float(scores.max()),
                "threshold": threshold,
                "calibrated": threshold is not None,
                "predict_ms": 10.0 + index,
                "paths": write_sample(root, sample),
                "file": name,
            }
        )
    return rows


METRICS = {
    "image_auroc": 0.9871,
    "image_ap": 0.9,
    "pixel_auroc": 0.97,
    "aupro_30": 0.934,
    "samples": 6,
    "predict_ms_p50": 12.0,
    "predict_ms_p95": 15.0,
    "bank_bytes": 12_300_000,
}


def make_evaluation(root, out, **changes) -> dict:
    """Write the --out folder of an evaluation of one category with two seeds; return its result."""
    runs = []
    for seed in (0, 1):
        folder = out / "runs" / f"plate-seed{seed}-full"
        rows = make_rows(root, folder)
        metrics = {**METRICS, "image_auroc_ci": [0.951, 0.999], "notes": {"aupro_01": "no defects <small> enough"}}
        files.write_json(folder / "run.json", {"category": "plate", "seed": seed, "shots": None, "metrics": metrics, "samples": rows})
        runs.append({"seed": seed, "shots": None, "category": "plate", "metrics": metrics})
    result = {
        "mm3dad": "0.1.0",
        "method": "duet",
        "config": {"grouping": True, "modalities": ["rgb", "xyz"]},
        "dataset": {"name": "folder", "root": "data", "categories": ["plate"]},
        "weights": [{"name": "lite0", "sha256": "ab" * 32, "licence": "Apache-2.0"}],
        "protocol": {"split": "test", "eval_size": 224},
        "versions": {"torch": "2.14.0"},
        "arguments": {"method": "duet", "seeds": [0, 1]},
        "command": "mm3dad evaluate duet --root 'my data'",
        "complete": True,
        "runs": runs,
        "categories": {"plate": {**METRICS, "std": {"image_auroc": 0.0123}, "image_auroc_ci": [0.951, 0.999]}},
        "mean": {**METRICS, "std": {}},
        **changes,
    }
    files.write_json(out / "evaluate.json", result)
    return result
