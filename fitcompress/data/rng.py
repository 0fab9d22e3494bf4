"""Random numbers as a pure function of (seed, stream, sample, epoch).

All randomness of the data comes from a counter-based generator (Philox 4x64-10, Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key (seed, stream) and counter (sample,
epoch). A number depends on nothing else: not on the order of the samples, the batch size, the
process or earlier draws. Imports numpy only.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["Bits", "Stream", "permutation", "random_bits", "to_beta", "to_uniform"]

Bits = npt.NDArray[np.uint64]


class Stream(enum.IntEnum):
    """Purpose of a random number; numbers of different streams are independent."""

    VIEW = 0
    MIX = 1
    ORDER = 2
    EVALUATION_SPLIT = 3
    HELD_OUT_SPLIT = 4
    LIMIT = 5
    RANDOM_HINT = 6


def random_bits(seed: int, stream: Stream, samples: Iterable[int], *, epoch: int, num: int) -> Bits:
    """`num` random 64-bit integers per sample, shape (samples, num).

    Row i depends on `samples[i]` only, not on the other samples.

    >>> both = random_bits(0, Stream.VIEW, [3, 5], epoch=1, num=4)
    >>> bool((both[1] == random_bits(0, Stream.VIEW, [5], epoch=1, num=4)[0]).all())
    True
    """
    key = np.array([seed % 2**64, int(stream)], dtype=np.uint64)
    generator = np.random.Philox(key=key)
    state = generator.state  # setting a state is six times as fast as making a generator
    rows = []
    for sample in samples:
        state["state"]["counter"][:] = (0, 0, sample, epoch)
        generator.state = state
        rows.append(generator.random_raw(num))
    return np.array(rows, dtype=np.uint64).reshape(len(rows), num)


def permutation(num: int, seed: int, stream: Stream, *, epoch: int = 0) -> npt.NDArray[np.int64]:
    """A random permutation of 0..num-1.

    Sorts raw random bits, which are the same in all versions of numpy; `Generator.permutation` may
    change between versions.
    """
    bits = random_bits(seed, stream, [0], epoch=epoch, num=num)[0]
    return np.argsort(bits, kind="stable").astype(np.int64)


def to_uniform(bits: Bits) -> npt.NDArray[np.float64]:
    """Random bits to uniform numbers in [0, 1), with 53 bits each."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def to_beta(bits: Bits, alpha: float) -> npt.NDArray[np.float64]:
    """Random bits, shape (N,), to Beta(alpha, alpha) numbers in [0, 1], shape (N,)."""
    generators = (np.random.Generator(np.random.Philox(key=int(key))) for key in bits)
    return np.array([generator.beta(alpha, alpha) for generator in generators], dtype=np.float64)
