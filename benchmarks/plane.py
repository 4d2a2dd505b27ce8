"""How far a wide dent tilts the dominant plane that `measure_relief` finds, beside a robust fit to all centres.

    python benchmarks/plane.py --dataset mvtec3d --root ROAD --category road

Only good training parts are read. Into the centres of each a dent is pressed, its radius 0.2 to 0.55 of the picture's shorter side,
anywhere, so that it may leave the picture. Printed is how much the heights of the untouched centres change, as a share of their own spread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import mm3dad
from mm3dad.features.points import measure_relief, thin_points
from mm3dad.ops import farthest_point_sample


def fit_all(place: Tensor, rounds: int = 12) -> Tensor:
    """Height (G,) above the plane of all centres, reweighted by the Cauchy function: what `duet` did before."""
    weight = torch.ones_like(place[:, :1])
    for _ in range(rounds):
        middle = (weight * place).sum(0) / weight.sum()
        offset = place - middle
        normal = torch.linalg.eigh((weight * offset).T @ offset).eigenvectors[:, 0]
        height = offset @ (normal if float(normal @ middle) < 0 else -normal)
        unit = 1.5 * height.abs().median().clamp_min(torch.finfo(place.dtype).eps)
        weight = (1 / (1 + (height / unit) ** 2))[:, None]
    return height


def press(place: Tensor, cell: Tensor, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Push a round region of the centres away from the sensor by 2 to 8 % of the part's width; return them and who stays (G,)."""
    middle = torch.rand(2, generator=generator) * torch.tensor(size)
    radius = min(size) * (0.2 + 0.35 * torch.rand((), generator=generator))
    distance = (cell - middle).norm(dim=1) / radius
    depth = (place[:, 0].max() - place[:, 0].min()) * (0.02 + 0.06 * torch.rand((), generator=generator))
    pressed = place.clone()
    pressed[:, 2] += depth * ((1 - distance) * 3).clamp(0, 1)
    return pressed, distance > 1.1


FITS: dict[str, Callable[[Tensor], Tensor]] = {
    "all centres, robust": fit_all,
    "consensus": lambda place: measure_relief(place)[:, -1].double(),
}


def main() -> None:
    """Print quartiles of the change for each way of fitting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mvtec3d")
    parser.add_argument("--root", required=True)
    parser.add_argument("--category", required=True)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    changes: dict[str, list[float]] = {name: [] for name in FITS}
    for sample in mm3dad.open_dataset(arguments.dataset, arguments.root, arguments.category, "train"):
        points, pixel = thin_points(sample.xyz, sample.valid, 20000)
        center = farthest_point_sample(points, min(1024, len(points)))
        place, flat = points[center].double(), pixel[center]
        cell = torch.stack([flat // sample.size[1], flat % sample.size[1]], dim=1).float()
        pressed, stays = press(place, cell, sample.size, generator)
        if int(stays.sum()) < len(place) // 5:
            continue
        for name, fit in FITS.items():
            before, after = fit(place)[stays], fit(pressed)[stays]
            changes[name].append(float((after - before).square().mean().sqrt() / before.square().mean().sqrt()))
    for name, values in changes.items():
        quartiles = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75, 0.9]))
        shares = " ".join(f"{value:.2f}" for value in quartiles.tolist())
        print(f"{arguments.category}, {name}: 25/50/75/90 % {shares}, mean {sum(values) / len(values):.3f}")


if __name__ == "__main__":
    main()
