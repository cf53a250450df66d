"""The table a training run ends with: one row per model, plain text or GitHub Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from timm_wsms.foreign import markdown, printable


@dataclass(frozen=True)
class Row:
    """One model's results.

    Attributes:
        model: Name.
        parameters: Number of parameters.
        multiplications: Multiplications of one forward pass for one image.
        accuracy: Top-1 in percent over the whole test set; None: not measured.
        by_size: Object size in pixels → top-1 in percent; empty where sizes are not known.
        top5: Top-5 in percent; None, and there is no such column.
        input_size: (C, H, W) of its images; a column where they differ.
        by_factor: Object size relative to the test image's own → top-1 in percent; empty where it was not measured.
    """

    model: str
    parameters: int
    multiplications: int
    accuracy: float | None
    by_size: dict[int, float] = field(default_factory=dict)
    top5: float | None = None
    input_size: Sequence[int] | None = None
    by_factor: dict[float, float] = field(default_factory=dict)


def text_table(rows: Sequence[Row]) -> str:
    """The table for a terminal: columns aligned, a rule under the header, no trailing blanks."""
    return aligned(_cells(rows))


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Any table for a terminal: the header first, the first column to the left, the others to the right."""
    cells = [[printable(cell) for cell in row] for row in cells]  # names of classes, for instance
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [_line(row, widths) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(rows: Sequence[Row]) -> str:
    """The same table in GitHub's Markdown, for README files and model cards."""
    cells = [[markdown(cell) for cell in row] for row in _cells(rows)]
    rule = ["---", *["---:"] * (len(cells[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def image_count(measured: int, left_out: int) -> str:
    """The number of images that were measured: `11 images (1 left out)`."""
    return f"{measured} images" + (f" ({left_out} left out)" if left_out else "")


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows as strings; a dash where a model has no value for a size."""
    sizes = sorted({size for row in rows for size in row.by_size})
    factors = sorted({factor for row in rows for factor in row.by_factor})
    top5 = ["top-5 %"] * any(row.top5 is not None for row in rows)
    images = ["image size"] * (len({tuple(row.input_size) for row in rows if row.input_size}) > 1)
    header = ["model", *images, "parameters", "multiplications", "accuracy %", *top5]
    header += [*(f"{size} px" for size in sizes), *(f"× {factor:.2g}" for factor in factors)]
    return [header] + [
        [
            row.model,
            *["×".join(map(str, row.input_size[1:])) if row.input_size else "–" for _ in images],
            f"{row.parameters / 1e6:.3f} M",
            f"{row.multiplications / 1e6:,.1f} M",
            "–" if row.accuracy is None else f"{row.accuracy:.2f}",
            *["–" if row.top5 is None else f"{row.top5:.2f}" for _ in top5],
            *[f"{row.by_size[size]:.1f}" if size in row.by_size else "–" for size in sizes],
            *[f"{row.by_factor[factor]:.1f}" if factor in row.by_factor else "–" for factor in factors],
        ]
        for row in rows
    ]


def _line(row: Sequence[str], widths: list[int]) -> str:
    numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *numbers]).rstrip()
