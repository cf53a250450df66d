"""Reads the records that benchmarks/photographs.py leaves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from benchmarks.photographs import REGIMES, RESULTS, with_more

Arrays = dict[str, np.ndarray]
# A learning rate of Imagenette that was tried after the one chosen before had been used everywhere: compared within
# itself, as if it were a regime, and not a choice.
LATER, LATER_RATE = "default, 8e-3", "8e-3"
REPORTED = (*REGIMES, LATER)


def read_records() -> dict[str, tuple[dict[str, Any], Arrays]]:
    """Every trained network's figures and logits, by its name; those of its test images, if any, are merged in.

    Returns:
        For each name the figures (`validation`, `test` where evaluated, …) and the arrays `<split>_logits`,
        `<split>_labels` and `<split>_index`. The regime of a run with the later learning rate is `LATER`.
    """
    found: dict[str, tuple[dict[str, Any], Arrays]] = {}
    paths = [path for path in RESULTS.glob("*.json") if path.with_suffix(".npz").exists()]
    for path in sorted(paths, key=lambda path: (path.stem.endswith("_tested"), path.stem)):
        name = path.stem.removesuffix("_tested")
        figures, arrays = found.get(name, ({}, {}))
        found[name] = (json.loads(path.read_text(encoding="utf-8")) | figures, {**arrays, **with_more(path)})
    for figures, _ in found.values():
        if (figures.get("data"), figures.get("regime"), figures.get("lr")) == ("imagenette", "default", LATER_RATE):
            figures["regime"] = LATER
    # what was tested without a record of its validation images chose nothing
    return {name: pair for name, pair in found.items() if "validation" in pair[0]}
