"""The load of experts as an SVG: a row a router, a column an expert, at the start of a run and at its end.

Colour is the load over its mean: white at 1, towards red above it, towards blue below it, grey for
an expert without a token. The same bytes for the same log.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_LEFT, _RIGHT, _TOP, _GAP, _WIDTH, _BOTTOM = 90, 12, 58, 40, 760, 34
_MOST_ROW, _LEAST_ROW, _HEIGHT = 22, 7, 460
# Three doublings either way reach full colour.
_DOUBLINGS = 3.0
_OVER, _UNDER, _NONE = (178, 24, 43), (33, 102, 172), "#777777"


def load_heat_map(panels: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """SVG text of panels side by side: a title each, and the `routers` of a row of the log."""
    # A step without tokens of a modality has none of its routers: their rows stay empty.
    rows = sorted({_router(router) for _, routers in panels for router in routers})
    most_rows = len(rows)
    height = max(_LEAST_ROW, min(_MOST_ROW, _HEIGHT // max(most_rows, 1)))
    width = (_WIDTH - _LEFT - _RIGHT - _GAP * (len(panels) - 1)) / len(panels)
    total = _TOP + most_rows * height + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {total}" '
        f'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{total}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">load of experts over its mean</text>',
        f'<text x="{_LEFT - 8}" y="{_TOP - 8}" text-anchor="end">layer</text>',
    ]
    for row, named in enumerate(rows):
        parts += _label(named, row, _TOP + row * height, height)
    for index, (title, routers) in enumerate(panels):
        left = _LEFT + index * (width + _GAP)
        parts.append(f'<text x="{left:.1f}" y="{_TOP - 8}">{title}</text>')
        for router in routers:
            top = _TOP + rows.index(_router(router)) * height
            parts += _cells(router["load"], left, top, width, height)
        parts.append(
            f'<rect x="{left:.1f}" y="{_TOP}" width="{width:.1f}" height="{most_rows * height}" fill="none" '
            'stroke="#ccc"/>'
        )
    parts.append(_legend(total - 12))
    return "\n".join([*parts, "</svg>\n"])


def _router(router: Mapping[str, Any]) -> tuple[int, str]:
    return router["layer"], router["modality"]


def _label(router: tuple[int, str], row: int, top: int, height: int) -> list[str]:
    # Rows lower than a line of text are named now and then.
    if row % max(1, -(-12 // height)):
        return []
    layer, modality = router
    name = f"{layer}" if modality == "text" else f"{layer} {modality}"
    return [f'<text x="{_LEFT - 8}" y="{top + height / 2 + 4:.1f}" text-anchor="end">{name}</text>']


def _cells(load: Sequence[int], left: float, top: int, width: float, height: int) -> list[str]:
    step = width / max(len(load), 1)
    mean = sum(load) / max(len(load), 1)
    return [
        f'<rect x="{left + expert * step:.1f}" y="{top}" width="{step:.1f}" height="{height}" '
        f'fill="{colour(count / mean if mean else 0.0)}"><title>expert {expert}: {count}</title></rect>'
        for expert, count in enumerate(load)
    ]


def colour(share: float) -> str:
    """Of a load over its mean."""
    if share <= 0:
        return _NONE
    strength = max(-1.0, min(1.0, math.log2(share) / _DOUBLINGS))
    end = _OVER if strength > 0 else _UNDER
    return "#" + "".join(f"{round(255 + (part - 255) * abs(strength)):02x}" for part in end)


def _legend(y: float) -> str:
    marks = ((0.0, "0"), (0.125, "1/8"), (0.5, "1/2"), (1.0, "1"), (2.0, "2"), (8.0, "8"))
    parts = []
    for index, (share, text) in enumerate(marks):
        x = _LEFT + 58 * index
        parts.append(
            f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour(share)}" stroke="#ccc"/>'
        )
        parts.append(f'<text x="{x + 17}" y="{y}">{text}</text>')
    return "\n".join(parts)
