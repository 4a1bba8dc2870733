"""The picture: a row for each key and for each replica, over the seconds of the proof."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from proof.judge import Case
from proof.plan import REPLICAS
from proof.replicas import KeyFacts

_LEFT, _RIGHT, _TOP = 150, 80, 76
_ROW, _BAR, _LANE = 34, 20, 22
_SCALE = 3.2  # pixels a second
_TICK = 30  # seconds
_WAITING, _SIGNING, _LEAVING, _BAD = "#9ecae1", "#08589e", "#c7c7c7", "#d7301f"
# Readable on the lines of the kills.
_NOTE = 'stroke="white" stroke-width="4" paint-order="stroke"'
_REPLICA, _WORKER, _INK = "#e6550d", "#fdae6b", "#333333"


@dataclass
class _Drawing:
    """Collects shapes; x is in seconds since signing began, y in pixels."""

    start: float
    shapes: list[str] = field(default_factory=list)

    def x(self, at: float) -> float:
        return round(_LEFT + (at - self.start) * _SCALE, 1)

    def bar(self, begin: float, end: float, y: float, colour: str, title: str) -> None:
        if end > begin:
            width = round(self.x(end) - self.x(begin), 1)
            self.shapes.append(
                f'<rect x="{self.x(begin)}" y="{y}" width="{width}" height="{_BAR}" '
                f'fill="{colour}"><title>{escape(title)}</title></rect>'
            )

    def line(self, at: float, top: float, bottom: float, style: str) -> None:
        x = self.x(at)
        self.shapes.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" {style}/>')

    def text(self, x: float, y: float, text: str, style: str = "") -> None:
        self.shapes.append(f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>')

    def mark(self, x: float, y: float, what: str) -> None:
        if what == "replica":
            self.shapes.append(
                f'<path d="M{x - 5} {y - 5}L{x + 5} {y + 5}M{x - 5} {y + 5}L{x + 5} {y - 5}" '
                f'stroke="{_REPLICA}" stroke-width="3"/>'
            )
        else:
            self.shapes.append(
                f'<circle cx="{x}" cy="{y}" r="4.5" fill="{_WORKER}" stroke="{_REPLICA}"/>'
            )


def timeline(case: Case, outcome: str) -> str:
    """An SVG document. ``outcome`` is one line for its title."""
    record = case.record
    first = min([record.began, *(key.published_at for key in case.keys)])
    drawing = _Drawing(first)
    keys_end = _TOP + len(case.keys) * _ROW
    bottom = keys_end + 10 + len(REPLICAS) * _LANE
    width = drawing.x(record.ended) + _RIGHT
    _axis(drawing, case, bottom)
    for kill in record.kills:
        drawing.line(kill.at, _TOP - 6, bottom, f'stroke="{_WORKER}" stroke-opacity="0.6"')
    _compromise_line(drawing, case, bottom)
    for number, key in enumerate(case.keys):
        _key_row(drawing, case, key, number)
    _replica_rows(drawing, case, keys_end + 10)
    _legend(drawing, bottom + 44)
    drawing.text(12, 26, "Rotation under SIGKILL", 'font-size="18" font-weight="bold"')
    drawing.text(12, 46, outcome)
    height = bottom + 64
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" font-family="sans-serif" font-size="12" '
        f'fill="{_INK}"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(drawing.shapes)
        + "\n</svg>\n"
    )


def _axis(drawing: _Drawing, case: Case, bottom: float) -> None:
    record = case.record
    for second in range(0, int(record.ended - record.began) + 1, _TICK):
        at = record.began + second
        drawing.line(at, _TOP - 6, bottom, 'stroke="#e3e3e3"')
        drawing.text(drawing.x(at), bottom + 16, f"{second} s", 'text-anchor="middle"')


def _key_row(drawing: _Drawing, case: Case, key: KeyFacts, number: int) -> None:
    record, y = case.record, _TOP + number * _ROW
    drawing.text(12, y + 15, f"key {number + 1}  {key.kid[:8]}", 'font-family="monospace"')
    end = min(key.compromised_at or key.withdraw_at or record.ended, record.ended)
    signed = record.signed.get(key.kid)
    begins = min(signed.first, end) if signed else end
    stops = min(signed.last, record.ended) if signed else end
    drawing.bar(key.published_at, begins, y, _WAITING, "published, not signing yet")
    drawing.bar(stops, end, y, _LEAVING, "published, signs no more")
    if signed is None:
        return
    drawing.bar(begins, stops, y, _SIGNING, f"signing: {signed.count} tokens")
    label = 'fill="white" text-anchor="middle"'
    drawing.text(
        (drawing.x(begins) + drawing.x(stops)) / 2, y + 14, f"{signed.count} tokens", label
    )
    if key.compromised_at is not None:
        drawing.text(drawing.x(end) + 4, y + 14, "removed at once", f'{_NOTE} fill="{_BAD}"')
    elif end < record.ended:
        drawing.text(drawing.x(end) + 4, y + 14, "withdrawn", _NOTE)


def _replica_rows(drawing: _Drawing, case: Case, top: float) -> None:
    for number, name in enumerate(REPLICAS):
        y = top + number * _LANE + _LANE / 2
        drawing.text(12, y + 4, f"replica {name}")
        drawing.shapes.append(
            f'<line x1="{_LEFT}" x2="{drawing.x(case.record.ended)}" y1="{y}" y2="{y}" '
            'stroke="#bbbbbb"/>'
        )
        for kill in case.record.kills:
            if kill.replica == name:
                drawing.mark(drawing.x(kill.at), y, kill.what)


def _compromise_line(drawing: _Drawing, case: Case, bottom: float) -> None:
    compromised = next((key for key in case.keys if key.compromised_at is not None), None)
    if compromised is None or compromised.compromised_at is None:
        return
    at, number = compromised.compromised_at, list(case.keys).index(compromised) + 1
    style = f'stroke="{_BAD}" stroke-width="2" stroke-dasharray="6 3"'
    drawing.line(at, _TOP - 6, bottom, style)
    drawing.text(
        drawing.x(at), _TOP - 10, f"key {number} compromised",
        f'text-anchor="middle" fill="{_BAD}" font-weight="bold"',
    )  # fmt: skip


def _legend(drawing: _Drawing, y: float) -> None:
    x: float = 12
    for colour, text in (
        (_WAITING, "published, not signing yet"),
        (_SIGNING, "signing"),
        (_LEAVING, "published, signs no more"),
    ):
        drawing.shapes.append(
            f'<rect x="{x}" y="{y - 11}" width="22" height="14" fill="{colour}"/>'
        )
        drawing.text(x + 28, y, text)
        x += 48 + 6.6 * len(text)
    for what, text in (("replica", "SIGKILL of a replica"), ("worker", "SIGKILL of a worker")):
        drawing.mark(x + 6, y - 4, what)
        drawing.text(x + 18, y, text)
        x += 38 + 6.6 * len(text)
