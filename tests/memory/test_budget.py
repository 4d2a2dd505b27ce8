"""A budget for a process, shared out to its banks."""

from __future__ import annotations

import pytest

from mm3dad.errors import ConfigError
from mm3dad.memory.budget import LIBRARIES, MATCH, SAMPLE, SELECTING, share_budget, work_of_row


def test_banks_share_what_libraries_network_and_a_sample_leave():
    assert share_budget(2**31, 0, 224, 1) == 2**31 - LIBRARIES - SAMPLE
    assert share_budget(2**31, 1000, 224, 2) == (2**31 - LIBRARIES - SAMPLE - 1000) // 2
    assert share_budget(2**31, 0, 64, 1) == share_budget(2**31, 0, 224, 1)  # a small picture frees nothing of what was read
    assert share_budget(2**31, 0, 448, 1) == 2**31 - LIBRARIES - 4 * SAMPLE


def test_a_budget_that_is_used_up_before_there_is_a_bank():
    least = LIBRARIES + SAMPLE
    assert share_budget(least + 1, 0, 224, 1) == 1
    with pytest.raises(ConfigError, match=r"memory_budget of 0.791 GiB is less than libraries, network and one sample take, 0.791 GiB"):
        share_budget(least, 0, 224, 1)


def test_the_copies_that_a_coreset_is_chosen_from_are_made_bank_after_bank():
    assert work_of_row(0, 1) == (4, SELECTING) and work_of_row(30, 2) == (2, SELECTING / 2 + 30 * MATCH)
