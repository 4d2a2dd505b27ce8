from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ModelError
from mm3dad.memory.routed import RoutedBanks


@pytest.fixture
def kinds():
    """Two kinds of parts far apart, three samples each, dealt alternately."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(20, 4, generator=generator) + 30 * (number % 2) for number in range(6)]
    return torch.stack([row.mean(0) for row in rows]), rows, [str(number) for number in range(6)]


def test_each_kind_has_a_bank_of_its_own(kinds):
    banks = RoutedBanks.build(*kinds, 2)
    assert [len(bank.rows) for bank in banks.banks] == [60, 60]
    route = banks.route(kinds[0]).tolist()
    assert route in ([0, 1] * 3, [1, 0] * 3)
    distance = banks.match(kinds[0][3], kinds[1][3])
    assert float(distance.max()) < 1e-2
    joined = torch.cat([kinds[1][1], kinds[1][5]])
    alone = torch.cdist(kinds[1][3].half().float(), joined.half().float()).amin(1)
    torch.testing.assert_close(banks.match(kinds[0][3], kinds[1][3], without=3), alone, atol=1e-4, rtol=1e-3)


def test_coreset_share_and_more_routers_than_samples(kinds):
    thin = RoutedBanks.build(*kinds, 2).thin(0.1)
    assert [len(bank.rows) for bank in thin.banks] == [6, 6] and bool((thin.match(kinds[0][0], kinds[1][0]) >= 0).all())
    assert [len(bank.rows) for bank in RoutedBanks.build(*kinds, 2).thin(0.0).banks] == [1, 1]
    many = RoutedBanks.build(*kinds, 50)
    assert len(many.banks) == 6
    # The only sample of a bank is judged against itself rather than against nothing.
    assert float(many.match(kinds[0][2], kinds[1][2], without=2).max()) < 1e-2


def test_state(kinds):
    banks = RoutedBanks.build(*kinds, 2).thin(0.5)
    tensors = banks.state()
    loaded = RoutedBanks.from_state(tensors)
    assert torch.equal(loaded.match(kinds[0][1], kinds[1][1]), banks.match(kinds[0][1], kinds[1][1]))
    for key in ("global", "local.1.rows"):
        with pytest.raises(ModelError, match="lacks"):
            RoutedBanks.from_state({name: value for name, value in tensors.items() if name != key})
    with pytest.raises(ModelError, match="do not fit together"):
        RoutedBanks.from_state({**tensors, "global": tensors["global"][:, :2]})
