"""Random numbers as a pure function of what they are for. Layer: numpy only; knows neither images
nor torch.

All randomness of the data comes from here: a counter-based generator (Philox 4x64-10, Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is keyed by (seed, stream) and counted
by (sample, epoch). So a number depends on nothing else: not on the order of the samples, the batch
size, the process or what was drawn before.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["Stream", "Words", "draw_order", "draw_words", "to_beta", "to_uniform"]

Words = npt.NDArray[np.uint64]


class Stream(enum.IntEnum):
    """What a random number is for; numbers of different streams are independent."""

    VIEW = 0
    MIX = 1
    ORDER = 2
    EVALUATION_SPLIT = 3
    HELD_OUT_SPLIT = 4
    LIMIT = 5
    RANDOM_HINT = 6


def draw_words(seed: int, stream: Stream, samples: Iterable[int], *, epoch: int, num: int) -> Words:
    """`num` random 64-bit words for each sample, shape (samples, num).

    Row i depends on `samples[i]` alone, not on the other samples.

    >>> both = draw_words(0, Stream.VIEW, [3, 5], epoch=1, num=4)
    >>> bool((both[1] == draw_words(0, Stream.VIEW, [5], epoch=1, num=4)[0]).all())
    True
    """
    key = np.array([seed % 2**64, int(stream)], dtype=np.uint64)
    generator = np.random.Philox(key=key)
    state = generator.state  # setting a state takes a sixth of the time of making a generator
    rows = []
    for sample in samples:
        state["state"]["counter"][:] = (0, 0, sample, epoch)
        generator.state = state
        rows.append(generator.random_raw(num))
    return np.array(rows, dtype=np.uint64).reshape(len(rows), num)


def draw_order(num: int, seed: int, stream: Stream, *, epoch: int = 0) -> npt.NDArray[np.int64]:
    """A permutation of 0..num-1.

    Made by sorting raw words, which numpy never changes; `Generator.permutation` may differ between
    versions.
    """
    words = draw_words(seed, stream, [0], epoch=epoch, num=num)[0]
    return np.argsort(words, kind="stable").astype(np.int64)


def to_uniform(words: Words) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) of 53 bits each, one for each word."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def to_beta(words: Words, alpha: float) -> npt.NDArray[np.float64]:
    """One Beta(alpha, alpha) number in [0, 1] for each word, shape (words,)."""
    generators = (np.random.Generator(np.random.Philox(key=int(word))) for word in words)
    return np.array([generator.beta(alpha, alpha) for generator in generators], dtype=np.float64)
