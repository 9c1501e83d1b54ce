"""The error of every matrix as an SVG: a row a kind of matrix, a column a layer; the same bytes for the same
run.

Colour is the error's power of ten, from pale for little to dark for much; grey is a matrix that is not there.
"""

import math
from collections.abc import Mapping

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _ROW = 190, 12, 58, 62, 760, 24
_PALE, _DARK, _NONE = (247, 251, 255), (8, 48, 107), "#dddddd"


def sensitivity_figure(errors: Mapping[str, float], *, title: str) -> str:
    """SVG text of parameter -> relative error of its products."""
    layers = sorted({layer_of(name) for name in errors})
    kinds = list(dict.fromkeys(kind_of(name) for name in errors))
    cells = {(kind_of(name), layer_of(name)): (name, error) for name, error in errors.items()}
    powers = [_power(error) for error in errors.values()]
    low, high = math.floor(min(powers)), math.ceil(max(powers))
    width = (_WIDTH - _LEFT - _RIGHT) / len(layers)
    height = _TOP + _ROW * len(kinds) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{_escape(title)}</text>',
    ]
    for row, kind in enumerate(kinds):
        top = _TOP + row * _ROW
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 16}" text-anchor="end">{_escape(kind)}</text>')
        for column, layer in enumerate(layers):
            name, error = cells.get((kind, layer), ("", None))
            colour = _NONE if error is None else _colour(_power(error), low, high)
            told = "" if error is None else f"<title>{_escape(name)}: {error:.3g}</title>"
            parts.append(
                f'<rect x="{_LEFT + column * width:.1f}" y="{top}" width="{width:.1f}" height="{_ROW - 2}" '
                f'fill="{colour}">{told}</rect>'
            )
    bottom = _TOP + _ROW * len(kinds)
    for column in range(0, len(layers), max(1, len(layers) // 10)):
        x = _LEFT + (column + 0.5) * width
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{layers[column]}</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="{bottom + 16}" text-anchor="end">layer</text>')
    for mark in range(low, high + 1):
        x = _LEFT + 80 * (mark - low)
        colour = _colour(mark, low, high)
        parts.append(
            f'<rect x="{x}" y="{bottom + 34}" width="12" height="12" fill="{colour}" stroke="#ccc"/>'
        )
        parts.append(f'<text x="{x + 17}" y="{bottom + 45}">1e{mark}</text>')
    return "\n".join([*parts, "</svg>\n"])


def layer_of(parameter: str) -> int:
    """The number of a parameter's layer."""
    return int(next(word for word in parameter.split(".") if word.isdigit()))


def kind_of(parameter: str) -> str:
    """A parameter's name within its layer."""
    words = parameter.removesuffix(".weight").split(".")
    return ".".join(words[next(place for place, word in enumerate(words) if word.isdigit()) + 1 :])


def _power(error: float) -> float:
    return math.log10(max(error, 1e-12))


def _colour(power: float, low: int, high: int) -> str:
    share = (power - low) / max(high - low, 1)
    mixed = (round(pale + (dark - pale) * share) for pale, dark in zip(_PALE, _DARK, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
