"""Line charts and heat maps as SVG text, coloured by the page's CSS variables so that it follows light and dark.

Where a screen is too narrow for their labels to be read, they scroll by themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44  # margins that hold ticks and labels

CURVE_POINTS = 60  # means of neighbouring losses: single small batches scatter

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve."""

    label: str  # empty: not in the legend
    points: Sequence[Point]  # (x, y), x rising
    color: str  # CSS colour, also var(--name)
    has_dots: bool = False  # marks each point
    is_dashed: bool = False


def svg(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Returns the chart of curves that together have at least one point."""
    points = [point for line in lines for point in line.points]
    xs, ys = _axis([x for x, _ in points]), _axis([y for _, y in points])

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
        return x, y

    name = f"{escape(y_label)} over {escape(x_label)}"
    parts = [f'<div class="wide"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">']
    for y in ys:
        at = place((xs[0], y))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in xs:
        at = place((x, ys[0]))[0]
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_number(x)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    turned = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{turned}" text-anchor="middle" transform="rotate(-90 14 {turned})">{escape(y_label)}</text>'
    )
    parts += [_curve(line, [place(point) for point in line.points]) for line in lines if line.points]
    return "\n".join([*parts, _legend([line for line in lines if line.points and line.label]), "</svg></div>"])


def heat(rows: Sequence[tuple[str, Sequence[float | None]]], *, columns: Sequence[float], x_label: str) -> str:
    """Returns a map of (label, values) rows, darker where a value is larger on a logarithmic scale.

    A value that is None is left blank, one that is not positive is as light as the least.
    """
    logs = [math.log(v) for _, row in rows for v in row if v is not None and v > 0]
    low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)
    left = 12 + 7 * max(len(label) for label, _ in rows)
    width, height = (WIDTH - left - RIGHT) / len(columns), 16
    bottom = height * len(rows)
    name = f"heat map over {escape(x_label)}"
    parts = [f'<div class="wide"><svg viewBox="0 0 {WIDTH} {bottom + 40}" role="img" aria-label="{name}">']
    for i, (label, row) in enumerate(rows):
        parts.append(f'<text x="{left - 6}" y="{height * i + 12}" text-anchor="end">{escape(label)}</text>')
        for j, value in enumerate(row):
            if value is None:
                continue
            share = (math.log(value) - low) / (high - low) if value > 0 and high > low else 0.0
            parts.append(
                f'<rect x="{left + width * j:.1f}" y="{height * i}" width="{width:.1f}" height="{height - 1}" '
                f'fill="var(--train)" fill-opacity="{0.06 + 0.94 * share:.2f}">'
                f"<title>{escape(label)}, {escape(x_label)} {_number(columns[j])}: {value:.4g}</title></rect>"
            )
    for j in sorted({0, len(columns) // 2, len(columns) - 1}):
        at = left + width * (j + 0.5)
        parts.append(f'<text x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">{_number(columns[j])}</text>')
    parts.append(f'<text x="{(left + WIDTH - RIGHT) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(x_label)}')
    return "\n".join([*parts, "</text></svg></div>"])


def means(points: Sequence[Point], n: int = CURVE_POINTS) -> list[Point]:
    """Returns the means of at most `n` equal runs of neighbouring points."""
    width = max(1, -(-len(points) // n))
    runs = [points[i : i + width] for i in range(0, len(points), width)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _curve(line: Line, points: list[Point]) -> str:
    dash = ' stroke-dasharray="6 5"' if line.is_dashed else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    out = f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="1.8"{dash}/>'
    if line.has_dots:
        out += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.color}"/>' for x, y in points)
    return out


def _legend(lines: list[Line]) -> str:
    """Entries in the upper right corner, one below the other."""
    out = ""
    width = 24 + max((len(line.label) for line in lines), default=0) * 7
    for i, line in enumerate(lines):
        x, y = WIDTH - RIGHT - width, TOP + 14 + 18 * i
        dash = ' stroke-dasharray="4 3"' if line.is_dashed else ""
        out += (
            f'<line x1="{x}" x2="{x + 16}" y1="{y - 4}" y2="{y - 4}" stroke="{line.color}" stroke-width="2.5"{dash}/>'
        )
        out += f'<text x="{x + 22}" y="{y}">{escape(line.label)}</text>'
    return out


def _axis(values: Sequence[float], n_ticks: int = 6) -> list[float]:
    """Returns evenly spaced round numbers, about `n_ticks`, that cover the values.

    Example: values from 0 to 290 give 0, 50, 100, 150, 200, 250, 300.
    """
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / n_ticks))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * n_ticks >= span)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [step * i for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.10g}"
