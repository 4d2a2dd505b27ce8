from __future__ import annotations

import math
import sys

import pytest
import torch
from torch.nn import functional

from mm3dad.errors import ConfigError
from mm3dad.metrics import auroc
from mm3dad.nets.denoiser import Denoiser, cut_tiles, join_tiles, measure_edges

SIDE = 32


def make_textures(count, generator):
    """Sine textures of random phase, (count, 1, 32, 32), of period 8 and standard deviation 1."""
    phase = 2 * math.pi * torch.rand(count, 2, 1, 1, generator=generator)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    unit = 2 * math.pi / 8
    return (2 * torch.sin(unit * row + phase[:, 0]) * torch.sin(unit * column + phase[:, 1]))[:, None].float()


def break_textures(pictures, generator):
    """Shift the phase of an 8 x 8 square of each by half a period; return them and the masks."""
    broken, masks = pictures.clone(), torch.zeros(pictures.shape, dtype=torch.bool)
    for number, (row, column) in enumerate(torch.randint(2, SIDE - 10, (len(pictures), 2), generator=generator).tolist()):
        square = (number, 0, slice(row, row + 8), slice(column, column + 8))
        broken[square] = -pictures[square]
        masks[square] = True
    return broken, masks


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Denoiser(1, (8, 16))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-3)
    for _ in range(150):
        pictures = make_textures(8, generator)
        loss = net.loss(pictures, torch.randn(pictures.shape, generator=generator), torch.randint(1000, (8,), generator=generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


@torch.no_grad()
def read(net, pictures, reading):
    noises = torch.randn(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
    found = {
        "picture": lambda: pictures,
        "one noise": lambda: net.predict_residual(pictures, 100, noises[:1]),
        "four noises": lambda: net.predict_residual(pictures, 100, noises),
        "clean": lambda: net.predict_clean(pictures, 100),
    }[reading]()
    return functional.avg_pool2d(found.square(), 5, stride=1, padding=2, count_include_pad=False)


def test_all_three_readings_find_what_the_eye_of_a_pixel_cannot(trained):
    """The sheet's toy trial: every value of the square is a normal one, only its phase is wrong."""
    generator = torch.Generator().manual_seed(1)
    broken, masks = break_textures(make_textures(12, generator), generator)
    found = {
        name: auroc(read(trained, broken, name).flatten(), masks.flatten().long())
        for name in ("picture", "one noise", "four noises", "clean")
    }
    assert found["picture"] < 0.6
    assert min(found[name] for name in ("one noise", "four noises", "clean")) > 0.95, found


def test_without_added_noise_the_step_hardly_matters(trained):
    generator = torch.Generator().manual_seed(1)
    broken, masks = break_textures(make_textures(12, generator), generator)
    with torch.no_grad():
        maps = [functional.avg_pool2d(trained.predict_clean(broken, step).square(), 5, 1, 2) for step in (50, 300)]
    assert abs(auroc(maps[0].flatten(), masks.flatten().long()) - auroc(maps[1].flatten(), masks.flatten().long())) < 0.1


def test_the_forward_process_is_that_of_ddpm():
    from diffusers import DDPMScheduler

    net, steps = Denoiser(1, (8, 8)), torch.tensor([0, 10, 500, 999])
    pictures, noise = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net.add_noise(pictures, noise, steps), DDPMScheduler(1000).add_noise(pictures, noise, steps))
    sigma = (1 - net.signal).sqrt()
    torch.testing.assert_close(sigma[[0, 10, 100, 500]], torch.tensor([0.010, 0.047, 0.324, 0.960]), atol=6e-4, rtol=0)


def test_a_residual_is_the_mean_over_its_noises(trained):
    pictures = make_textures(2, torch.Generator().manual_seed(3))
    noises = torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        single = [trained.predict_residual(pictures, 200, noise[None]) for noise in noises]
        torch.testing.assert_close(trained.predict_residual(pictures, 200, noises), torch.stack(single).mean(0))


def test_edges_are_sobels():
    ramp = torch.arange(6.0).expand(6, 6) * 3
    edges = measure_edges(torch.stack([ramp, ramp.T])[None])
    torch.testing.assert_close(edges[..., 1:-1, 1:-1], torch.full((1, 2, 4, 4), 3.0))
    assert not bool(measure_edges(torch.ones(1, 1, 5, 5)).any())


@pytest.mark.parametrize(("size", "side"), [((32, 32), 16), ((33, 21), 8), ((7, 7), 7), ((9, 5), 1)])
def test_tiles_cover_the_picture_and_come_back(size, side):
    picture = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    tiles, corners = cut_tiles(picture, side)
    assert tiles.shape[1:] == (2, side, side)
    torch.testing.assert_close(join_tiles(tiles, corners, size), picture)


def test_bad_sizes(monkeypatch):
    with pytest.raises(ConfigError, match=r"tiles must fit into the picture, \(8, 4\), got 5"):
        cut_tiles(torch.zeros(1, 8, 4), 5)
    for widths in ((8,), (8, 12), (0, 8)):
        with pytest.raises(ConfigError, match="multiples of 8, got"):
            Denoiser(1, widths)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'mm3dad\[diffusion\]'"):
        Denoiser(1)
