"""Writes the tables of photographs, and of stage 1 on CIFAR-10, in README.md and docs/ anew from the results files.

    python -m benchmarks.photographs_documents

A table follows the comment `<!-- table: NAME -->`; its two lines of head stay as they are. Run it after
photographs_report, photographs_cascade and photographs_borders. Prose with figures is written by hand, and tests
compare it with the results files.
"""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks import photographs_borders, photographs_calibration, photographs_cascade
from benchmarks import photographs_tables as tables
from benchmarks.common.environment import ROOT
from benchmarks.object_size import stage_one
from timm_wsms.files import atomic_write_text

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("results", "choosing", "cascade")),
]
MARK = "<!-- table: "
TABLE = re.compile(rf"(?<={MARK})([^>]+?)( -->\n\n?\|.*\n\|.*\n)((?:\|.*\n)*)")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def all_tables() -> dict[str, list[str]]:
    """Name → the lines below the head."""
    report, cascade, borders = (read(f"photographs{part}") for part in ("", "_cascade", "_borders"))
    flowers, imagenette = report["test"], report["imagenette_test"]

    def of_both(flowers_lines: list[str], imagenette_lines: list[str]) -> list[str]:
        return [f"| flowers {line}" for line in flowers_lines] + [f"| Imagenette {line}" for line in imagenette_lines]

    found = {
        "headline": tables.of_headline(flowers),
        "screening": tables.of_screening(report["screening"]),
        "validation folds": tables.of_folds(report["folds"]),
        "tested": tables.of_tested(flowers),
        "every photograph": tables.of_every_photograph(
            flowers, report["every_photograph"]["fold 1"], report["every_photograph"]["all folds"]
        ),
        "test folds": tables.of_folds(report["test_folds"]),
        "imagenette": tables.of_tested(imagenette),
        "imagenette seeds": tables.of_folds(report["imagenette_seeds"]),
        "image sizes": tables.of_image_sizes(report["image_sizes"]),
        "targets": tables.of_targets(flowers, imagenette),
        "choices": tables.of_choices(flowers),
        "equal cost": of_both(
            tables.of_equal_cost(flowers, tables.TRAINED),
            tables.of_equal_cost(imagenette, tables.IMAGENETTE_TRAINED),
        ),
        "equal training": of_both(
            tables.of_equal_training(flowers, tables.TRAINED),
            tables.of_equal_training(imagenette, tables.IMAGENETTE_TRAINED),
        ),
        "tried": tables.of_tried(report["screening"]),
        "calibration": photographs_calibration.lines(read("photographs_calibration")),
        "cascade targets": photographs_cascade.of_targets(cascade),
    }
    for part in ("", "_jitter"):
        found[f"stage one, cifar10{part}"] = stage_one.lines(read(f"stage_one_cifar10{part}")["rows"])
    for regime, of_regime in borders["trained_with"].items():
        found[f"borders, {regime}"] = photographs_borders.lines(of_regime)
    for data, regime, form, each in photographs_cascade.every(cascade):
        found[f"cascade, {data}, {regime}, {form}"] = photographs_cascade.lines(each)
        found[f"cascade alone, {data}, {regime}, {form}"] = photographs_cascade.lines(each, ["stage 1 alone"])
    return found


def filled(text: str, found: dict[str, list[str]]) -> str:
    """A document's text with all of its tables written anew.

    Raises:
        KeyError: A table has a name that there are no results for.
        ValueError: No table follows a mark.
    """
    if len(TABLE.findall(text)) != text.count(MARK):
        raise ValueError(f"a table has to follow each {MARK!r}…, at once or after one blank line")
    return TABLE.sub(lambda match: match[1] + match[2] + "".join(f"{line}\n" for line in found[match[1]]), text)


def main() -> None:
    found = all_tables()
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        atomic_write_text(path, filled(text, found))
        print(f"{path.relative_to(ROOT)}: {len(TABLE.findall(text))} tables")


if __name__ == "__main__":
    main()
