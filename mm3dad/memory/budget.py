"""How a budget for a whole process is shared out to its banks."""

from __future__ import annotations

from mm3dad.errors import ConfigError

LIBRARIES = 700 * 2**20  # torch, timm and what they load, resident
SAMPLE = 110 * 2**20  # a sample of 224 x 224 pixels' worth of input while its features are computed
SELECTING = 600  # bytes for each row while a coreset is chosen: heads, clusters and bounds of the exact k-centre, measured
MATCH = 8  # bytes of a matched row: distance and number


def share_budget(budget: int, networks: int, image_size: int, banks: int) -> int:
    """Return the bytes that each of a process's banks may take while it is made, with all that is made of its rows.

    What does not grow with the number of samples is a constant that was measured, not the memory that the process has at this moment:
    the same budget gives the same bank everywhere.

    Args:
        budget: bytes of the whole process.
        networks: bytes of the parameters of its networks.
        image_size: side of the square with as many pixels as a network's input.
        banks: how many share it.

    Raises:
        ConfigError: the budget is used up before there is a bank.
    """
    fixed = LIBRARIES + networks + int(SAMPLE * max(1.0, (image_size / 224) ** 2))
    if budget <= fixed:
        raise ConfigError(
            f"memory_budget of {budget / 2**30:.3g} GiB is less than libraries, network and one sample take, "
            f"{fixed / 2**30:.3g} GiB; raise it"
        )
    return (budget - fixed) // banks


def work_of_row(neighbors: int, banks: int) -> tuple[float, float]:
    """Return the bytes that a row costs beside itself while a model is made: for each of its channels, and once.

    Coresets are chosen from float32 copies, bank after bank, so that their memory is shared by all; the matches of held-out rows
    stay until all are judged.
    """
    return 4 / banks, SELECTING / banks + MATCH * neighbors
