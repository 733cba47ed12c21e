"""How numbers are written: enough digits to decide, never more, and always with a unit."""

from __future__ import annotations

import math

from cpd_edge.types import Interval

MISSING = "not measured"
"""What stands where a number is missing."""

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SHARES = ("top", "acc", "iou", "map", "dice", "f1", "precision", "recall", "auc")


def decimals(value: float, digits: int = 3) -> int:
    """Digits behind the point that show `digits` significant ones; integers keep all of theirs."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(9, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def fixed(value: float, places: int) -> str:
    """A number with `places` decimals, a comma every thousand and a true minus sign."""
    if not math.isfinite(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:,.{places}f}"
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.,") else MINUS + text[1:]
    return text


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits; very small values as powers of ten."""
    if value is None:
        return MISSING
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    return fixed(value, decimals(value, digits))


def exact(value: float | None) -> str:
    """Up to five significant digits, no trailing zeros: for what somebody typed."""
    if value is None:
        return MISSING
    text = fixed(value, decimals(value, 5))
    return text.rstrip("0").rstrip(".") if "." in text else text


def ms(value: float | None) -> str:
    """Milliseconds."""
    return MISSING if value is None else f"{number(value)} ms"


def signed(text: str) -> str:
    """The text of a number with its sign in front, plus included."""
    return text if text.startswith(MINUS) else f"+{text}"


def spread(interval: Interval) -> int:
    """Decimals at which an interval's half-width shows, at least those of its estimate."""
    half = (interval.high - interval.low) / 2
    return max(decimals(interval.estimate), decimals(half, 1) if math.isfinite(half) else 0)


def bounds(interval: Interval, scale: float = 1.0, places: int | None = None) -> str:
    """`[low, high]`; a bound that the samples cannot give is said to be so."""
    digits = spread(interval) if places is None else places
    ends = (
        fixed(b * scale, digits) if math.isfinite(b) else "not supported by n" for b in (interval.low, interval.high)
    )
    return f"[{', '.join(ends)}]"


def interval_ms(interval: Interval | None) -> str:
    """`12.3 ms [12.1, 12.5]`."""
    if interval is None:
        return MISSING
    return f"{fixed(interval.estimate, spread(interval))} ms {bounds(interval)}"


def ratio(value: float | None) -> str:
    """`1.82×`."""
    return MISSING if value is None else f"{number(value)}{TIMES}"


def percent(share: float | None, digits: int = 2) -> str:
    """A fraction as per cent: `0.021` is `2.1 %`."""
    return MISSING if share is None else f"{number(share * 100, digits)} %"


def portion(share: float) -> str:
    """A fraction as per cent to three digits; 100 % only where it is all."""
    return percent(min(share, 0.999) if share < 1 else share, 3)


def count(value: float | None) -> str:
    """A count with an SI prefix from ten thousand on: `1.82 G`."""
    if value is None:
        return MISSING
    for size, prefix in _PREFIXES:
        if abs(value) >= size and abs(value) >= 1e4:
            return f"{number(value / size)} {prefix}"
    return fixed(value, 0 if float(value).is_integer() else decimals(value))


def size(size_bytes: float | None) -> str:
    """Bytes in decimal units: `97.8 MB`."""
    if size_bytes is None:
        return MISSING
    for unit, prefix in _PREFIXES[1:]:
        if abs(size_bytes) >= unit:
            return f"{number(size_bytes / unit)} {prefix}B"
    return f"{fixed(size_bytes, 0)} B"


def duration(seconds: float | None) -> str:
    """`0.42 s`, `3 min 12 s`, `1 h 4 min`."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def quantile(share: float | None) -> str:
    """`0.5` is `p50`, `0.999` is `p99.9`."""
    return "Latency" if share is None else f"p{share * 100:.6g}"


def level(name: str) -> float | None:
    """Inverse of `quantile`: `p50` is `0.5`; None for what is no quantile's name."""
    digits = name.removeprefix("p")
    share = float(digits) / 100 if digits.replace(".", "", 1).isdigit() else 0.0
    return share if 0 < share < 1 else None


def is_share(metric: str, *values: float | None) -> bool:
    """Whether a metric is a fraction of one, so that it reads better in per cent."""
    known = [v for v in values if v is not None]
    return any(word in metric.lower() for word in _SHARES) and all(-1 <= v <= 1 for v in known)


def score(value: float | None, share: bool) -> str:
    """A metric's value: per cent with two decimals, or four significant digits."""
    if value is None:
        return MISSING
    return f"{fixed(value * 100, 2)} %" if share else number(value, 4)


def score_change(value: float | None, share: bool) -> str:
    """A metric's change: percentage points, or plain."""
    if value is None:
        return MISSING
    return signed(f"{fixed(value * 100, 2)} pp" if share else number(value, 3))


def score_bounds(interval: Interval | None, share: bool) -> str:
    """`[low, high]` of a metric in the unit of `score`; empty without an interval."""
    if interval is None:
        return ""
    return bounds(interval, 100.0, 2) if share else bounds(interval, 1.0, decimals(interval.estimate, 4))


def shorten(text: str, length: int) -> str:
    """Keeps both ends of a long name, since module paths differ at both."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
