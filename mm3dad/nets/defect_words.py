"""Words for defects that a diffusion model has no name for: the unbalanced prompt of SeaS, its new words and where they stand.

"SeaS: Few-shot Industrial Anomaly Image Generation with Separation and Sharing Fine-tuning" (ICCV 2025, arXiv 2410.14987), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm3dad.errors import ConfigError, WeightsError
from mm3dad.nets.text_tower import TextTower

WORDS = 4  # new words of each type of defect
PART, DEFECT = "ob1", "sks"  # the new word of the part, and the stem of those of defects
STARTS = {PART: "object", DEFECT: "defect"}  # the known word that a new one begins as


@dataclass(frozen=True)
class Prompt:
    """The words of a text, and the places of the new ones, counted with the start token at 0.

    Args:
        words: without start and end.
        part: place of the part's word.
        defect: places of the defect's words, none in a normal prompt.
    """

    words: tuple[str, ...]
    part: int
    defect: tuple[int, ...]


def make_prompt(kind: int | None) -> Prompt:
    """Return "a ob1 with sks<4c+1> .. sks<4c+4>" for type c of defect (0, 1, ...), or "a ob1" for None."""
    if kind is None:
        return Prompt(("a", PART), 2, ())
    names = tuple(f"{DEFECT}{WORDS * kind + number + 1}" for number in range(WORDS))
    return Prompt(("a", PART, "with", *names), 2, tuple(range(4, 4 + WORDS)))


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of the known words that prompts are made of.

    Args:
        start, end: tokens around every text; the end fills up to the tower's length, as Stable Diffusion does.
        words: word -> number in the token table.
    """

    start: int
    end: int
    words: dict[str, int]

    @staticmethod
    def pick(numbers: dict[str, int]) -> Vocabulary:
        """Take what is needed from a tokenizer's table in CLIP's form, in which a whole word ends in "</w>".

        Raises:
            WeightsError: a word is missing.
        """
        try:
            words = {word: int(numbers[f"{word}</w>"]) for word in ("a", "with", *STARTS.values())}
            return Vocabulary(int(numbers["<|startoftext|>"]), int(numbers["<|endoftext|>"]), words)
        except KeyError as error:
            raise WeightsError(f"the tokenizer's vocab.json lacks {error}; give a folder of Stable Diffusion 1") from error


class DefectWords(nn.Module):
    """The embeddings that are learned: one word for the part, four for each type of defect.

    Args:
        tower: whose table gives their first values.
        vocabulary: its words.
        kinds: types of defects, at least one.

    Raises:
        ConfigError: no type, or texts too long for the tower.
    """

    def __init__(self, tower: TextTower, vocabulary: Vocabulary, kinds: int) -> None:
        super().__init__()
        if kinds < 1:
            raise ConfigError(f"defect words need at least one type of defect, got {kinds}; give labelled defects")
        if tower.length < 2 + len(make_prompt(0).words):
            raise ConfigError(f"prompts need a text tower of length 9 or more, got {tower.length}")
        names = [PART, *(f"{DEFECT}{number + 1}" for number in range(WORDS * kinds))]
        self.place = {name: number for number, name in enumerate(names)}
        self.vocabulary, self.length = vocabulary, tower.length
        known = [vocabulary.words[STARTS[PART if name == PART else DEFECT]] for name in names]
        self.rows = nn.Parameter(tower.table.detach()[known].clone())

    def embed(self, tower: TextTower, prompt: Prompt | None) -> Tensor:
        """Return the token embeddings (T, width) of a prompt, or of the empty text for None; the gradient reaches its new words only."""
        table = tower.table.detach()
        rows = [table[self.vocabulary.start]]
        for word in prompt.words if prompt else ():
            rows.append(self.rows[self.place[word]] if word in self.place else table[self.vocabulary.words[word]])
        rows += [table[self.vocabulary.end]] * (self.length - len(rows))
        return torch.stack(rows)

    def encode(self, tower: TextTower, prompts: list[Prompt | None]) -> Tensor:
        """Return what the diffusion model is conditioned on, (B, T, width)."""
        found: Tensor = tower(torch.stack([self.embed(tower, prompt) for prompt in prompts]))
        return found
