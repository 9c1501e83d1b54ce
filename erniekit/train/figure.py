"""The loss over the steps as an SVG: no plotting library, the same bytes for the same log."""

import math
from collections.abc import Sequence

Point = tuple[float, float]
_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 40, 46
# The average looks back over an eighth of the run, ten points at most: it must not lag behind a short run.
_LOOK_BACK, _MOST_POINTS = 8, 10
# More points than this are no finer on the screen, only a larger file: means of neighbours are drawn.
_DRAWN = 800
# What fits beside the legend.
_TITLE = 46


def loss_figure(train: Sequence[Point], held_out: Sequence[Point], *, title: str, label: str = "loss") -> str:
    """SVG text of (step, loss) points: each step pale, their moving average, held-out figures as dots.

    Points that are not finite (skipped steps) are left out; at least one must be finite.
    """
    train, held_out = thinned(_finite(train)), _finite(held_out)
    window = max(1.0, min(_MOST_POINTS, len(train) / _LOOK_BACK))
    smooth = moving_average(train, 1.0 - 1.0 / window)
    values = [y for _, y in (*train, *held_out)]
    steps = [x for x, _ in (*train, *held_out)]
    x_ticks, y_ticks = ticks(min(steps), max(steps)), ticks(min(values), max(values))
    x_low, x_high = min(x_ticks[0], min(steps)), max(x_ticks[-1], max(steps))
    y_low, y_high = min(y_ticks[0], min(values)), max(y_ticks[-1], max(values))

    def place(point: Point) -> str:
        x = _LEFT + (point[0] - x_low) / (x_high - x_low or 1) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - (point[1] - y_low) / (y_high - y_low or 1) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{_escape(shortened(title))}</text>',
        f'<text x="16" y="{(_TOP + _HEIGHT - _BOTTOM) / 2:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(_TOP + _HEIGHT - _BOTTOM) / 2:.1f})">{_escape(label)}</text>',
    ]
    for tick in y_ticks:
        x, y = place((x_low, tick)).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x = place((tick, y_low)).split(",")[0]
        parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">step</text>')
    parts.append(_line(" ".join(map(place, train)), "#9ec5e8", 1))
    parts.append(_line(" ".join(map(place, smooth)), "#1f6fb2", 2))
    if len(held_out) > 1:
        parts.append(_line(" ".join(map(place, held_out)), "#d9541e", 1, dashes="4 4"))
    parts += [
        '<circle cx="{}" cy="{}" r="4" fill="#d9541e"/>'.format(*place(point).split(","))
        for point in held_out
    ]
    parts += _legend(bool(held_out))
    return "\n".join([*parts, "</svg>\n"])


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most 800 points: the means of as many neighbours as that takes."""
    size = -(-len(points) // _DRAWN) or 1
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def shortened(title: str) -> str:
    """A title that leaves room for the legend: a long one loses its middle."""
    if len(title) <= _TITLE:
        return title
    return f"{title[: _TITLE // 2 - 3]} ... {title[-(_TITLE // 2 - 2) :]}"


def moving_average(points: Sequence[Point], decay: float) -> list[Point]:
    """Exponential moving average without the bias of its start."""
    smooth, total, weight = [], 0.0, 0.0
    for x, y in points:
        total = decay * total + (1 - decay) * y
        weight = decay * weight + (1 - decay)
        smooth.append((x, total / weight))
    return smooth


def ticks(low: float, high: float, *, about: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    power = 10.0 ** _floor_log10(raw)
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999999)
    first, last = int(low // step), int(-(-high // step))
    return [round(number * step, 12) for number in range(first, last + 1)]


def _floor_log10(value: float) -> int:
    exponent = 0
    while value < 10.0**exponent:
        exponent -= 1
    while value >= 10.0 ** (exponent + 1):
        exponent += 1
    return exponent


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point[1])]


def _line(points: str, colour: str, width: int, *, dashes: str = "none") -> str:
    stroke = f'stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"'
    return f'<polyline points="{points}" fill="none" stroke-linejoin="round" {stroke}/>'


def _legend(with_held_out: bool) -> list[str]:
    entries = [("#9ec5e8", "training"), ("#1f6fb2", "smoothed")]
    if with_held_out:
        entries.append(("#d9541e", "held-out"))
    parts = []
    for index, (colour, text) in enumerate(entries):
        x = _WIDTH - _RIGHT - 90 * (len(entries) - index)
        parts.append(f'<rect x="{x}" y="15" width="12" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="24">{text}</text>')
    return parts


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
