"""The checksum that each thread must end with: exchange.cuh in numpy, modulo 2**32."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

STEP_FACTOR = np.uint32(0x9E3779B1)
WORD_FACTOR = np.uint32(0x85EBCA77)
MIX_FACTOR = np.uint32(0x2C1B3C6D)
GROUP_TERM = 0x01000001
HASH_FACTOR = 0x01000193
# Steps made at once: what fits a cache.
BLOCK = 16


def chunk_sums(steps: int, chunks: int) -> NDArray[np.uint32]:
    """[steps, chunks]: the sum of the four numbers of each chunk, in group 0."""
    words = np.arange(4 * chunks, dtype=np.uint32) * WORD_FACTOR
    sums = np.empty((steps, chunks), np.uint32)
    for begin in range(0, steps, BLOCK):
        end = min(begin + BLOCK, steps)
        x = (np.arange(begin + 1, end + 1, dtype=np.uint32) * STEP_FACTOR)[:, None] ^ words
        x ^= x >> np.uint32(15)
        x *= MIX_FACTOR
        x ^= x >> np.uint32(13)
        x &= np.uint32(0x3FFFFFFF)
        sums[begin:end] = x.reshape(end - begin, chunks, 4).sum(-1, dtype=np.uint32)
    return sums


def weights(steps: int) -> NDArray[np.uint32]:
    """[steps]: by what the sum of a step is multiplied in the end."""
    factors = np.ones(steps, np.uint32)
    factors[1:] = HASH_FACTOR
    return np.cumprod(factors, dtype=np.uint32)[::-1]


@functools.lru_cache(maxsize=4)
def group_0(steps: int, chunks: int, stride: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """[stride] each: the checksum of who reads chunks i, i + stride, ..., and the words it reads."""
    # First over the steps, which leaves one number a chunk.
    hashes = (chunk_sums(steps, chunks) * weights(steps)[:, None]).sum(0, dtype=np.uint32)
    rows = -(-chunks // stride)
    padded = np.zeros((2, rows * stride), np.uint32)
    padded[0, :chunks], padded[1, :chunks] = hashes, 4
    checksum, words = padded.reshape(2, rows, stride).sum(1, dtype=np.uint32)
    return checksum, words


def checksums(
    steps: int, chunks: int, threads: int, groups: int, blocks: int, every_warp: bool
) -> NDArray[np.uint32]:
    """[groups * blocks, threads]: what a launch must leave.

    chunks: of 16 bytes, of a group. every_warp: whether each warp reads all chunks, and not the
    block once.
    """
    checksum, words = group_0(steps, chunks, 32 if every_warp else threads)
    if every_warp:
        checksum, words = (np.tile(x, threads // 32) for x in (checksum, words))
    terms = np.arange(groups, dtype=np.uint32) * np.uint32(GROUP_TERM)
    terms *= weights(steps).sum(dtype=np.uint32)
    return np.repeat(checksum + terms[:, None] * words, blocks, axis=0)
