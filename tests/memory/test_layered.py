"""The memory of whole images: retrieval, precision, the file behind it."""

from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, DataError, ModelError
from mm3dad.memory.layered import LayeredBank


def fill(count=6, folder="", seed=0, widths=(5, 3)):
    generator = torch.Generator().manual_seed(seed)
    bank, images = LayeredBank(count, folder), []
    for number in range(count):
        images.append((torch.randn(8, generator=generator), [torch.randn(12, width, generator=generator) for width in widths]))
        bank.add(str(number), *images[-1])
    return bank, images


def test_rows_are_those_given_in_half_precision():
    bank, images = fill()
    for number, (descriptor, layers) in enumerate(images):
        assert torch.equal(bank.descriptors[number], descriptor)
        for layer, rows in enumerate(layers):
            assert torch.equal(bank.patches_of(layer, torch.tensor([number]))[0], rows.half())


def test_retrieval_is_by_cosine_clamped_to_the_bank():
    bank, images = fill()
    query = images[4][0] * 7
    assert bank.retrieve(query, 1).tolist() == [4]
    assert sorted(bank.retrieve(query, 99).tolist()) == list(range(6))
    assert 4 not in bank.retrieve(query, 99, exclude=4).tolist()
    similarity = torch.nn.functional.cosine_similarity(query[None], bank.descriptors)
    torch.testing.assert_close(bank.similarity(query), similarity)


def test_a_bank_on_disk_equals_one_in_memory_and_leaves_no_file(tmp_path):
    disk, _ = fill(folder=tmp_path / "bank")
    memory, _ = fill()
    assert len(list((tmp_path / "bank").iterdir())) == 2
    assert all(torch.equal(a, b) for a, b in zip(disk.state().values(), memory.state().values(), strict=True))
    del disk
    assert not list((tmp_path / "bank").iterdir())


def test_bytes_are_known_before():
    bank, _ = fill(widths=(5, 8))
    assert LayeredBank.estimate_bytes(6, 12, (5, 8)) == sum(t.numel() * t.element_size() for t in bank.state().values())


def test_state_goes_round():
    bank, _ = fill()
    again = LayeredBank.from_state(bank.state())
    assert again.size == 6 and all(torch.equal(a, b) for a, b in zip(again.layers, bank.layers, strict=True))
    with pytest.raises(ModelError, match="differ in length"):
        LayeredBank.from_state({**bank.state(), "layer1": torch.zeros(2, 12, 3)})


def test_wrong_input_is_explained(tmp_path):
    bank, images = fill()
    with pytest.raises(DataError, match="opened for 6 images"):
        bank.add("x", *images[0])
    open_bank = LayeredBank(2)
    open_bank.add("a", *images[0])
    with pytest.raises(DataError, match=r"features of 'b' have shapes .* expected"):
        open_bank.add("b", images[0][0], images[0][1][:1])
    with pytest.raises(DataError, match="finite and below 65504"):
        open_bank.add("b", images[0][0], [layer * 1e6 for layer in images[0][1]])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        LayeredBank(1, tmp_path / "file").add("a", *images[0])
