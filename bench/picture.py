"""The table as an SVG: every ratio as a bar on a scale where its bound is 1."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.report import Cell

_LEFT, _WIDTH, _LINE, _TOP = 430, 420, 26, 56  # pixels
_MOST = 2.5  # times the bound; longer bars are cut
_COLOURS = {"aim": "#2e7d32", "pass": "#7cb342", "FAIL": "#c62828"}


def draw(cells: Sequence[Cell], title: str) -> str:
    shown = [cell for cell in cells if cell.row.limit is not None]
    height = _TOP + _LINE * len(shown) + 30
    bound = _LEFT + _WIDTH / _MOST
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 120}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
        '<text x="12" y="42" fill="#555">The line is the bound; longer is better.</text>',
        *(_bar(cell, _TOP + _LINE * index) for index, cell in enumerate(shown)),
        f'<line x1="{bound}" x2="{bound}" y1="{_TOP - 6}" y2="{height - 24}" stroke="#333"/>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def goodness(cell: Cell) -> float | None:
    """1 at the bound, above it where better."""
    if cell.value is None or cell.row.limit is None:
        return None
    bound = cell.row.limit.bound
    if cell.row.limit.kind == "least":
        return cell.value / bound
    return bound / cell.value if cell.value else _MOST


def _bar(cell: Cell, y: int) -> str:
    name = f'<text x="12" y="{y + 15}">{escape(cell.row.work)}</text>'
    good = goodness(cell)
    if good is None:
        return f'{name}<text x="{_LEFT}" y="{y + 15}" fill="#888">skipped</text>'
    length = min(good, _MOST) * _WIDTH / _MOST
    text = f"{cell.value:.2f}" + ("" if cell.row.peer else cell.row.unit)
    return (
        f'{name}<rect x="{_LEFT}" y="{y + 3}" width="{length:.1f}" height="16" '
        f'fill="{_COLOURS[cell.verdict]}"/>'
        f'<text x="{_LEFT + length + 6:.1f}" y="{y + 15}">{escape(text)}</text>'
    )
