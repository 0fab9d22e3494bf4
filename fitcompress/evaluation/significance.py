"""Confidence intervals and significance tests.

Pure functions of numbers, without torch, so that reports can use them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from scipy.special import stdtr, stdtrit

from fitcompress.records.measurements import MeanInterval, PairedTest, PairedTTest, Share

__all__ = [
    "SIGNIFICANT",
    "holm",
    "mean_interval",
    "paired_t_test",
    "paired_test",
    "share",
    "wilson_interval",
]

SIGNIFICANT = 0.05
"""The largest p-value, after any correction, that reports call significant."""


def share(num_correct: int, n: int) -> Share:
    """The share `num_correct` of `n` with its 95 % interval (`wilson_interval`)."""
    low, high = wilson_interval(num_correct, n)
    return Share(top1=num_correct / n, low=low, high=high, n=n)


def wilson_interval(num_correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The bounds of a proportion that was observed as `num_correct` of `n`.

    Source: Wilson 1927, without continuity correction. Unlike the normal approximation it stays
    inside 0..1 and holds for small `n`.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    assert 0 <= num_correct <= n and n > 0, (num_correct, n)
    z = _normal_quantile(confidence)
    observed = num_correct / n
    center = (observed + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(observed * (1 - observed) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def paired_test(only_first: int, only_second: int, n: int) -> PairedTest:
    """McNemar's exact two-sided test of two networks on the same `n` images.

    only_first: images that only the first network classifies correctly.
    only_second: images that only the second network classifies correctly.

    Source: McNemar 1947, the exact binomial form: under the null hypothesis, either network is
    equally likely to be the one that is right. Interval: Agresti and Min 2005 (Statistics in
    Medicine 24), half an image added to each of the four cells.
    """
    low, high = _paired_interval(only_first, only_second, n)
    return PairedTest(
        difference=(only_second - only_first) / n,
        low=low,
        high=high,
        p_value=_exact_sign_p(only_first, only_second),
        only_first=only_first,
        only_second=only_second,
        n=n,
    )


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """The mean of independent values with Student's 95 % interval.

    Source: Student 1908, which assumes normal values.
    """
    n, mean = len(values), fmean(values)
    if n < 2:
        return MeanInterval(mean=mean, sd=None, low=None, high=None, n=n)
    sd = stdev(values)
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return MeanInterval(mean=mean, sd=sd, low=mean - half, high=mean + half, n=n)


def paired_t_test(differences: Sequence[float]) -> PairedTTest:
    """The two-sided test of whether the mean of paired differences is 0.

    Source: Student 1908. The p-value of a single difference, or of differences that are all equal,
    is None: they have no spread.
    """
    found = mean_interval(differences)
    mean, sd, n = found.mean, found.sd, found.n
    p_value = None
    if sd is not None and sd > 1e-12 * abs(mean):
        p_value = 2 * float(stdtr(n - 1, -abs(mean / (sd / math.sqrt(n)))))
    return PairedTTest(**vars(found), p_value=p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: comparing each with 0.05 keeps the probability of any false positive among
    the tests below 5 %.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = list(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _exact_sign_p(one: int, other: int) -> float:
    """The two-sided p-value of `one` heads and `other` tails of a fair coin, in exact integers."""
    n = one + other
    term = tail = 1
    for k in range(min(one, other)):
        term = term * (n - k) // (k + 1)
        tail += term
    p_value: float = 2 * tail / 2**n
    return min(1.0, p_value)


def _paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    first, second, total = only_first + 0.5, only_second + 0.5, n + 2
    difference = (second - first) / total
    deviation = math.sqrt(first + second - (second - first) ** 2 / total) / total
    half = _normal_quantile(0.95) * deviation
    return max(-1.0, difference - half), min(1.0, difference + half)
