"""Numbers and names as text. Pure."""

from __future__ import annotations

import math

__all__ = [
    "bytes_text",
    "count_text",
    "duration_text",
    "first_line",
    "integer_text",
    "ms_text",
    "p_text",
    "percent_text",
    "points_text",
    "rate_text",
    "ratio_text",
    "runtime_name",
    "shape_text",
    "speed_text",
    "stage_title",
    "threads_text",
]


def count_text(value: float) -> str:
    """A count with three digits and the suffix k, M, G, T, P or E.

    >>> count_text(25_557_032), count_text(999_999), count_text(431)
    ('25.6 M', '1.00 M', '431')
    """
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"))


def bytes_text(value: float) -> str:
    """A size in bytes with three digits, in units of 1024.

    >>> bytes_text(1_500_000)
    '1.43 MiB'
    """
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def integer_text(value: float) -> str:
    """A whole number with thousands separators.

    >>> integer_text(10000)
    '10,000'
    """
    return f"{round(value):,}"


def percent_text(share: float, digits: int = 1) -> str:
    """A share (0..1) in percent.

    >>> percent_text(0.8812)
    '88.1 %'
    """
    return f"{100 * share:.{digits}f} %"


def points_text(difference: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, signed.

    >>> points_text(-0.0213), points_text(-0.0213, 2), points_text(-0.0001)
    ('-2.1 points', '-2.13 points', '0.0 points')
    """
    rounded = round(100 * difference, digits) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if rounded else ''}.{digits}f} points"


def ratio_text(reference: float, value: float, less: str = "less", more: str = "more") -> str:
    """The ratio of `value` to `reference`, with at most two digits.

    >>> ratio_text(100, 25), ratio_text(20, 40), ratio_text(100, 99)
    ('4.0x less', '2.0x more', 'the same')
    """
    if reference <= 0 or value <= 0:
        return "not comparable"
    ratio = reference / value
    if 0.975 < ratio < 1.025:
        return "the same"
    return f"{_factor(ratio)}x {less}" if ratio > 1 else f"{_factor(1 / ratio)}x {more}"


def speed_text(speedup: float, low: float, high: float) -> str:
    """A speedup; "about as fast" if its interval from `low` to `high` includes 1.

    >>> speed_text(1.6, 1.4, 1.7), speed_text(0.5, 0.4, 0.6), speed_text(1.1, 0.9, 1.2)
    ('1.6x faster', '2.0x slower', 'about as fast')
    """
    text = ratio_text(speedup, 1.0, "faster", "slower")
    return "about as fast" if low <= 1 <= high or text == "the same" else text


def ms_text(value: float) -> str:
    """Milliseconds with three digits.

    >>> ms_text(0.01234), ms_text(3.4567), ms_text(1234.5)
    ('0.0123 ms', '3.46 ms', '1,234 ms')
    """
    return f"{_three_digits(value)} ms"


def rate_text(per_second: float) -> str:
    """A throughput in images per second.

    >>> rate_text(9064.2), rate_text(3.14159)
    ('9,064', '3.14')
    """
    return _three_digits(per_second)


def duration_text(seconds: float) -> str:
    """A duration in its two largest units.

    >>> duration_text(7.26), duration_text(95), duration_text(3725)
    ('7.3 s', '1 min 35 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def p_text(p_value: float) -> str:
    """A p-value with two digits.

    >>> p_text(0.0314), p_text(2e-9)
    ('p = 0.031', 'p < 0.001')
    """
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def shape_text(shape: object) -> str:
    """A tensor's shape without brackets.

    >>> shape_text([64, 8, 8])
    '64 x 8 x 8'
    """
    if isinstance(shape, (list, tuple)):
        return " x ".join(str(size) for size in shape)
    return str(shape)


def runtime_name(runtime: str) -> str:
    """The name of a runtime in prose.

    >>> runtime_name("torch"), runtime_name("onnxruntime")
    ('PyTorch', 'ONNX Runtime')
    """
    return {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}.get(runtime, runtime)


def threads_text(threads: int, device: str = "cpu") -> str:
    """The threads of a CPU, or another device.

    >>> threads_text(1), threads_text(2, "cuda")
    ('1 thread', 'cuda')
    """
    if device != "cpu":
        return device
    return f"{threads} thread{'s' if threads != 1 else ''}"


def stage_title(stage: str) -> str:
    """The title of a stage.

    >>> stage_title("stage1"), stage_title("export")
    ('Stage 1: hint training', 'Export')
    """
    return _STAGE_TITLES.get(stage, stage.replace("_", " ").capitalize())


_STAGE_TITLES = {
    "teacher": "Teacher: fine-tuning",
    "stage1": "Stage 1: hint training",
    "stage2": "Stage 2: distillation",
    "baseline": "Baseline: no teacher",
}


def _factor(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1.05 else f"{ratio:.2f}"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    index = 0
    while index < len(units) - 1 and round(value / base**index, 1) >= base - 0.5:
        index += 1
    scaled = value / base**index
    number = str(round(scaled)) if index == 0 else _three_digits(scaled)
    return f"{number} {units[index]}".strip()


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    value = float(f"{value:.3g}") if abs(value) < 1000 else value
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def first_line(error: Exception, *, with_type: bool = False) -> str:
    """The first line of an error's message, at most 300 characters; its type if it has no message.

    >>> first_line(ValueError("too large\\nat line 3")), first_line(ValueError(), with_type=True)
    ('too large', 'ValueError')
    """
    name, lines = type(error).__name__, str(error).strip().splitlines()
    line = lines[0][:300] if lines else name
    return f"{name}: {line}" if with_type and lines else line
