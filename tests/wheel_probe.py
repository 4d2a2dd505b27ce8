"""Run by tests/test_wheel.py where only the installed wheel can be imported: fit, save, load and predict, without a weight of others."""

import sys
from pathlib import Path

import torch

import mm3dad

assert Path(mm3dad.__file__).is_relative_to(sys.argv[1]), mm3dad.__file__
x, y = torch.meshgrid(torch.linspace(0, 0.064, 64), torch.linspace(0, 0.064, 64), indexing="xy")
flat = torch.stack([x, y, 0.4 + 0.002 * torch.sin(90 * x)])
good = [mm3dad.Sample(xyz=flat + 1e-5 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))) for seed in range(4)]
options = {"image_size": 64, "centers": 32, "group_size": 16, "max_points": 600}
detector = mm3dad.create("duet", modalities="xyz", **options).fit(good)
loaded = mm3dad.load(str(detector.save("model")))
bent = mm3dad.Sample(xyz=flat.clone())
bent.xyz[2, 20:32, 20:32] -= 0.008
assert loaded.predict(bent).score == detector.predict(bent).score > detector.predict(good[0]).score
sys.stdout.write("works\n")
