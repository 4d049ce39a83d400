"""A chart of grouped horizontal bars, by hand: one group per quantity, one bar per system, bounds as dashed lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LABELS, BARS, VALUES = 150, 400, 250  # widths: names, bars, numbers
BAR, GAP, TITLE, MARGIN = 15, 18, 24, 16  # heights
OURS, THEIRS, INK, PALE = "#c2410c", "#64748b", "#1f2937", "#94a3b8"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One system in one group. spread: lowest and highest run. note: said behind the value."""

    name: str
    value: float
    spread: tuple[float, float]
    ours: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One quantity. bound: drawn as a line, if known."""

    title: str
    bars: Sequence[Bar]
    bound: float | None = None


def chart(title: str, subtitle: str, groups: Sequence[Group]) -> str:
    """The SVG text. Each group has a scale of its own that starts at 0."""
    groups = [group for group in groups if group.bars]
    width = LABELS + BARS + VALUES + 2 * MARGIN
    y = MARGIN + 50
    parts = [
        _text(MARGIN, MARGIN + 14, title, size=16, weight="bold"),
        _text(MARGIN, MARGIN + 34, subtitle, size=11, fill=PALE),
    ]
    for group in groups:
        parts += _group(group, y)
        y += TITLE + BAR * len(group.bars) + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{y}" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


def _group(group: Group, y: float) -> list[str]:
    left = MARGIN + LABELS
    highest = max([bar.spread[1] for bar in group.bars] + ([group.bound] if group.bound else []))
    scale = BARS / highest if highest > 0 else 0.0
    parts = [_text(MARGIN, y + 14, group.title, size=12, weight="bold")]
    top = y + TITLE
    for i, bar in enumerate(group.bars):
        row = top + i * BAR
        low, high = (left + edge * scale for edge in bar.spread)
        label = f"{bar.value:,.4g}" + (f" ({bar.note})" if bar.note else "")
        parts += [
            _text(left - 8, row + 11, bar.name, anchor="end", weight="bold" if bar.ours else "normal"),
            f'<rect x="{left}" y="{row + 2}" width="{bar.value * scale:.1f}" height="{BAR - 4}" '
            f'fill="{OURS if bar.ours else THEIRS}"/>',
            f'<path d="M{low:.1f} {row + BAR / 2}H{high:.1f}" stroke="{INK}"/>',
            _text(max(high, left + bar.value * scale) + 6, row + 11, label),
        ]
    if group.bound:
        x, bottom = left + group.bound * scale, top + BAR * len(group.bars)
        parts += [
            f'<path d="M{x:.1f} {top - 4}V{bottom}" stroke="{INK}" stroke-dasharray="4 3"/>',
            _text(x, top - 7, f"bound {group.bound:,.4g}", anchor="middle", fill=INK),
        ]
    return parts


def _text(
    x: float, y: float, text: str, *, size: int = 11, weight: str = "normal", anchor: str = "start", fill: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{fill}">{escape(text)}</text>'
    )
