"""Work on a cloud block by block."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def map_blocks(function: Callable[..., Tensor], size: int, *rows: Tensor) -> Tensor:
    """Apply a function to blocks of `size` rows of all tensors, and join the results.

    On the CPU the blocks run on as many threads as torch has. For blocks that fit the cache this is far better than torch's own
    threads inside each step, which wait for one another after every step and crawl when the machine is busy.
    """
    blocks = list(zip(*(tensor.split(size) for tensor in rows), strict=True))
    if rows[0].device.type != "cpu" or len(blocks) == 1:
        return torch.cat([function(*block) for block in blocks])
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return torch.cat(list(pool.map(lambda block: function(*block), blocks)))
