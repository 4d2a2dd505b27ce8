from __future__ import annotations

import pytest
import torch

from mm3dad.errors import ConfigError, WeightsError
from mm3dad.nets.defect_words import DefectWords, Vocabulary, make_prompt
from mm3dad.nets.text_tower import TextTower

VOCABULARY = Vocabulary(4, 5, {"a": 0, "with": 1, "object": 2, "defect": 3})


def make_words(kinds=2, length=12):
    torch.manual_seed(0)
    tower = TextTower(6, width=8, layers=2, heads=2, hidden=16, length=length)
    return tower.requires_grad_(False), DefectWords(tower, VOCABULARY, kinds)


def test_the_unbalanced_prompt_has_one_word_for_the_part_and_four_for_the_defect():
    first, third, normal = make_prompt(0), make_prompt(2), make_prompt(None)
    assert first.words == ("a", "ob1", "with", "sks1", "sks2", "sks3", "sks4")
    assert third.words == ("a", "ob1", "with", "sks9", "sks10", "sks11", "sks12")
    assert normal.words == ("a", "ob1") and normal.defect == ()
    for prompt in (first, third):
        text = ("<start>", *prompt.words)
        assert text[prompt.part] == "ob1" and [text[place] for place in prompt.defect] == list(prompt.words[3:])


def test_words_stand_at_their_places_and_begin_as_known_ones():
    tower, words = make_words()
    assert torch.equal(words.rows[0], tower.table[2]) and torch.equal(words.rows[1:], tower.table[3].expand(8, -1))
    with torch.no_grad():
        words.rows.copy_(torch.arange(9.0)[:, None].expand(-1, 8))
    found = words.embed(tower, make_prompt(1))
    assert torch.equal(found[[0, 1, 3]], tower.table[[4, 0, 1]])
    assert found[[2, 4, 5, 6, 7], 0].tolist() == [0, 5, 6, 7, 8]
    assert torch.equal(found[8:], tower.table[5].expand(4, -1))
    assert torch.equal(words.embed(tower, None), tower.table[[4] + [5] * 11])


def test_the_gradient_reaches_the_words_of_the_text_only():
    tower, words = make_words()
    words.encode(tower, [make_prompt(1)])[:, 1:].square().sum().backward()
    assert words.rows.grad.norm(dim=1).bool().tolist() == [True] + [False] * 4 + [True] * 4
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_what_is_missing_is_named():
    tower, _ = make_words()
    with pytest.raises(ConfigError, match="at least one type of defect, got 0"):
        DefectWords(tower, VOCABULARY, 0)
    with pytest.raises(ConfigError, match="length 9 or more, got 8"):
        make_words(length=8)
    numbers = {"a</w>": 320, "with</w>": 593, "object</w>": 14115, "defect</w>": 1, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    assert Vocabulary.pick(numbers).words["object"] == 14115
    with pytest.raises(WeightsError, match="lacks 'defect</w>'"):
        Vocabulary.pick({key: value for key, value in numbers.items() if key != "defect</w>"})
