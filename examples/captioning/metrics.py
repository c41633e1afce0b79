"""How good captions are: BLEU, ROUGE-L, CIDEr, exact match, and where attention looks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .example import Box
from .vocabulary import normalize

# BLEU comes from sacrebleu. ROUGE-L with the constants of captioning and CIDEr are in no library
# that is kept up: pycocoevalcap has them in 100 MB of Java programs, last released in 2020.
# tests/examples/test_captioning_metrics.py compares all of them with what it gives.

MAX_NGRAM = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CIDER_SCALE = 10.0

Ngrams = tuple[Counter[tuple[str, ...]], ...]  # of 1, 2, 3, 4 words


def score(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How ``candidates`` compare with ``references``, of which each candidate has one or more.

    Capitals and punctuation do not count. Returns, over all candidates:

    - ``bleu1`` to ``bleu4``, in [0, 1]: corpus BLEU up to that length of n-grams (Papineni et al.
      2002), not smoothed, with the closest reference length.
    - ``rouge_l``, in [0, 1]: mean F-measure of the longest common subsequence (Lin 2004), with
      recall weighing 1.2 times precision, each the best over the references.
    - ``cider``, in [0, 10]: CIDEr-D (Vedantam et al. 2015, section 6), document frequencies from
      these references. 0 for a single picture, all of whose n-grams are in every picture.
    - ``exact_match``, in [0, 1]: share of candidates that are one of their references.

    ValueError for no candidates, another number of reference lists, or an empty list.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates need as many lists of references, "
                         f"got {len(references)}")  # fmt: skip
    if not candidates:
        raise ValueError("candidates must not be empty")
    if not all(references):
        raise ValueError("each candidate needs at least one reference")
    found = [normalize(candidate) for candidate in candidates]
    wanted = [[normalize(reference) for reference in group] for group in references]
    words = [candidate.split() for candidate in found]
    reference_words = [[reference.split() for reference in group] for group in wanted]
    pairs = list(zip(words, reference_words, strict=True))
    return {
        **_bleu(found, wanted),
        "rouge_l": sum(_rouge_l(*pair) for pair in pairs) / len(pairs),
        "cider": _cider(words, reference_words),
        "exact_match": sum(c in group for c, group in zip(found, wanted, strict=True)) / len(pairs),
    }


def pointing(
    attention: np.ndarray, words: Sequence[str], boxes: Mapping[str, Box]
) -> tuple[int, int]:
    """How often attention looks at the thing that a word names.

    ``attention`` [T, H, W] has the weights over the picture at the writing of each of ``words``
    (T of them). A hit is a word with a box whose brightest cell has its middle in that box.
    Returns hits, and how many words have a box. ValueError if the lengths differ.
    """
    attention = np.asarray(attention)
    if attention.ndim != 3 or len(attention) != len(words):
        raise ValueError(f"attention must be [{len(words)}, H, W], got {list(attention.shape)}")
    _, height, width = attention.shape
    hits = count = 0
    for weights, word in zip(attention, words, strict=True):
        if word not in boxes:
            continue
        row, column = divmod(int(weights.argmax()), width)
        x, y = (column + 0.5) / width, (row + 0.5) / height
        x0, y0, x1, y1 = boxes[word]
        hits += x0 <= x <= x1 and y0 <= y <= y1
        count += 1
    return hits, count


def _bleu(candidates: list[str], references: list[list[str]]) -> dict[str, float]:
    from sacrebleu.metrics import BLEU

    # sacrebleu wants the first references of all, then the second ones; None where there is none.
    most = max(len(group) for group in references)
    streams = [[group[k] if k < len(group) else None for group in references] for k in range(most)]
    scores = {}
    for n in range(1, MAX_NGRAM + 1):
        # The words are separated already, and "force" says so.
        bleu = BLEU(max_ngram_order=n, smooth_method="none", tokenize="none", force=True)
        scores[f"bleu{n}"] = bleu.corpus_score(candidates, streams).score / 100
    return scores


def _rouge_l(candidate: list[str], references: list[list[str]]) -> float:
    common = [_longest_common(candidate, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(n / max(1, len(ref)) for n, ref in zip(common, references, strict=True))
    beta2 = ROUGE_BETA**2
    return (1 + beta2) * precision * recall / (recall + beta2 * precision)


def _longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def _ngrams(words: list[str]) -> Ngrams:
    return tuple(
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        for n in range(1, MAX_NGRAM + 1)
    )


def _cider(candidates: list[list[str]], references: list[list[list[str]]]) -> float:
    counts = [[_ngrams(reference) for reference in group] for group in references]
    seen_in: Counter[tuple[str, ...]] = Counter()
    for group in counts:
        seen_in.update({gram for ngrams in group for counter in ngrams for gram in counter})
    total = 0.0
    for candidate, words, group in zip(candidates, references, counts, strict=True):
        ours = _ngrams(candidate)
        similarities = [
            _similarity(ours, theirs, seen_in, len(references))
            * math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * CIDER_SIGMA**2))
            for reference, theirs in zip(words, group, strict=True)
        ]
        total += sum(similarities) / len(similarities)
    return CIDER_SCALE * total / len(candidates)


def _similarity(
    ours: Ngrams, theirs: Ngrams, seen_in: Counter[tuple[str, ...]], pictures: int
) -> float:
    """Mean over n of the cosines between tf-idf vectors of n-grams, ours clipped to theirs."""
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        idf = {gram: math.log(pictures / max(1, seen_in[gram])) for gram in a.keys() | b.keys()}
        dot = sum(min(a[gram], b[gram]) * b[gram] * idf[gram] ** 2 for gram in a)
        norms = [math.sqrt(sum((n * idf[g]) ** 2 for g, n in c.items())) for c in (a, b)]
        if all(norms):
            total += dot / (norms[0] * norms[1])
    return total / MAX_NGRAM
