"""How sure a share or a mean is, and whether two differ: intervals and tests. Layer: scipy.

Pure functions of numbers, so that reports need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from scipy.special import stdtr, stdtrit

__all__ = ["holm", "mean_interval", "paired_t_test", "paired_test", "share", "wilson_interval"]


def share(num_correct: int, n: int) -> dict[str, float]:
    """A share as reports keep it: `top1`, the bounds `low` and `high` of its 95 % interval, `n`."""
    low, high = wilson_interval(num_correct, n)
    return {"top1": num_correct / n, "low": low, "high": high, "n": n}


def wilson_interval(num_correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound of a share that was observed as `num_correct` of `n`.

    Source: Wilson 1927, without continuity correction. Unlike the usual plus-minus it stays inside
    0..1 and holds for small `n`.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    assert 0 <= num_correct <= n and n > 0, (num_correct, n)
    z = _normal_quantile(confidence)
    observed = num_correct / n
    centre = (observed + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(observed * (1 - observed) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_test(only_first: int, only_second: int, n: int) -> dict[str, float]:
    """McNemar's test of two networks on the same `n` images, from how many only one has right.

    `difference` is second minus first, with `low` and `high` its 95 % interval. `p_value` is exact
    and two-sided.

    Source: McNemar 1947, the exact binomial form: among the images that only one of the two has
    right, each is as likely to be that one. Interval: Agresti and Min 2005 (Statistics in Medicine
    24), half an image added to each of the four cells.
    """
    low, high = _paired_interval(only_first, only_second, n)
    return {
        "difference": (only_second - only_first) / n,
        "low": low,
        "high": high,
        "p_value": _exact_sign_p(only_first, only_second),
        "only_first": only_first,
        "only_second": only_second,
        "n": n,
    }


def mean_interval(values: Sequence[float]) -> dict[str, float | None]:
    """The `mean` of independent values, their standard deviation `sd`, the bounds `low` and `high`
    of the mean's 95 % interval, and `n`. A single value has neither deviation nor interval.

    Source: Student 1908: the values are taken as normal.
    """
    n, mean = len(values), fmean(values)
    if n < 2:
        return {"mean": mean, "sd": None, "low": None, "high": None, "n": n}
    sd = stdev(values)
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half, "n": n}


def paired_t_test(differences: Sequence[float]) -> dict[str, float | None]:
    """Whether the mean of paired differences is other than 0: as `mean_interval`, with the
    two-sided `p_value`.

    Source: Student 1908. A single difference, or some that are all the same, have no spread to
    judge by: their p-value is None.
    """
    found = mean_interval(differences)
    mean, sd, n = fmean(differences), found["sd"], len(differences)
    if sd is None or sd <= 1e-12 * abs(mean):
        return {**found, "p_value": None}
    t = mean / (sd / math.sqrt(n))
    return {**found, "p_value": 2 * float(stdtr(n - 1, -abs(t)))}


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, raised so that comparing each with 0.05 is wrong about any of
    them at most once in twenty times.

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
    """Two-sided p of a split `one` to `other` under a fair coin, in exact integers."""
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
