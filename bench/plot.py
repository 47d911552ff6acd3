"""Charts of a sweep: as text for a terminal, and as PNG where matplotlib is installed. The vertical axis is logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 72, 16
MARKS = "o*#+x"


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns `lines` of `rows` over column `across`, all positive."""

    title: str
    across: str
    lines: tuple[str, ...]
    rows: Sequence[Mapping[str, float]]

    def text(self) -> str:
        """Return the chart in `HEIGHT` lines of `WIDTH` characters beside its scale."""
        points = [(row[self.across], row[line], mark) for row in self.rows for line, mark in self._marked()]
        points = [(x, y, mark) for x, y, mark in points if math.isfinite(y) and y > 0]
        if not points:
            return f"{self.title}: nothing was measured"
        left, right = min(x for x, _, _ in points), max(x for x, _, _ in points)
        low, high = (math.log10(bound(y for _, y, _ in points)) for bound in (min, max))
        cells = [[" "] * WIDTH for _ in range(HEIGHT)]
        for x, y, mark in points:
            column = round((x - left) / (right - left or 1) * (WIDTH - 1))
            line = round((math.log10(y) - low) / (high - low or 1) * (HEIGHT - 1))
            cells[HEIGHT - 1 - line][column] = mark
        shown = [self.title]
        for number, line_cells in enumerate(cells):
            value = 10 ** (high - (high - low) * number / (HEIGHT - 1))
            shown.append(f"{value:>10,.0f} |{''.join(line_cells).rstrip()}")
        shown.append(f"{'':>10} +{'-' * WIDTH}")
        ends = f"{left:,.0f}", f"{right:,.0f}"
        shown.append(f"{'':>12}{ends[0]}{ends[1]:>{WIDTH - len(ends[0])}}")
        legend = "  ".join(f"{mark} {line}" for line, mark in self._marked())
        return "\n".join([*shown, f"{'':>12}{self.across} across; {legend}"])

    def write_png(self, path: Path) -> None:
        """Write the chart as a PNG file; needs matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5))
        axes = figure.add_subplot()
        across = [row[self.across] for row in self.rows]
        for line in self.lines:
            axes.plot(across, [row[line] for row in self.rows], marker=".", label=line)
        axes.set(title=self.title, xlabel=self.across, yscale="log")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=120)

    def _marked(self) -> list[tuple[str, str]]:
        return list(zip(self.lines, MARKS, strict=False))
