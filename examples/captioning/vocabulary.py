"""Words and their numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..common.errors import UserError

PAD, START, END, UNK = 0, 1, 2, 3
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

_APOSTROPHES = re.compile("['\N{RIGHT SINGLE QUOTATION MARK}]")
_WORD = re.compile(r"[^\W_]+")


def tokenize(caption: str) -> list[str]:
    """The words and numbers of ``caption`` in lower case, without punctuation.

    An apostrophe joins ("man's" becomes "mans"), all other punctuation separates.
    """
    return _WORD.findall(_APOSTROPHES.sub("", caption.lower()))


def normalize(caption: str) -> str:
    """``caption`` as a model would write it: its words with single spaces between them."""
    return " ".join(tokenize(caption))


class Vocabulary:
    """The words a model knows; the number of a word is its place in ``words``.

    ``words`` begins with SPECIAL and names no word twice; ValueError otherwise.
    """

    def __init__(self, words: list[str]) -> None:
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"words must begin with {SPECIAL}, got {tuple(words[: len(SPECIAL)])}")
        self.words = list(words)
        self._ids = {word: number for number, word in enumerate(words)}
        if len(self._ids) != len(words):
            raise ValueError("words must all differ")

    @staticmethod
    def build(captions: Iterable[str], threshold: int) -> Vocabulary:
        """Of the words that occur at least ``threshold`` times, the most frequent first.

        Words of equal frequency stand in alphabetical order, so that the numbers do not depend on
        the order of the captions.
        """
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = sorted((-count, word) for word, count in counts.items() if count >= threshold)
        return Vocabulary([*SPECIAL, *(word for _, word in kept)])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def encode(self, caption: str, max_length: int) -> list[int]:
        """The numbers of the first ``max_length`` words, UNK for a word that is not known.

        Neither START nor END is added. ``words_cut`` says how many words are left out.
        """
        return [self._ids.get(word, UNK) for word in tokenize(caption)[:max_length]]

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to the first END, without PAD and START."""
        words = []
        for number in ids:
            number = int(number)
            if number == END:
                break
            if number not in (PAD, START):
                words.append(self.words[number])
        return " ".join(words)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"words": list(self.words)}

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> Vocabulary:
        """The vocabulary that ``state_dict`` described; UserError if ``state`` is something else."""
        words = state.get("words") if isinstance(state, dict) else None
        if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
            raise UserError("the checkpoint holds no vocabulary")
        try:
            return Vocabulary(list(words))
        except ValueError as error:
            raise UserError(f"the checkpoint's vocabulary is damaged: {error}") from error


def words_cut(caption: str, max_length: int) -> int:
    """How many words of ``caption`` ``Vocabulary.encode`` leaves out."""
    return max(0, len(tokenize(caption)) - max_length)
