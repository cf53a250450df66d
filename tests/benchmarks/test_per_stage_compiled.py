"""The document's table of a graph per stage holds the figures of its results file."""

import json

from tests.helpers.paths import ROOT

BACKBONES = ("swin_tiny_patch4_window7_224", "vit_small_patch16_224", "convnext_tiny")
ROWS = {
    "quotient, one graph": ("wsms_quotient", ""),
    "quotient, a graph per stage": ("wsms_per_stage_quotient", ""),
    "peak memory, one graph": ("wsms_peak", "× "),
    "peak memory, a graph per stage": ("wsms_per_stage_peak", "× "),
}


def test_the_table_of_a_graph_per_stage():
    report = json.loads((ROOT / "benchmarks/results/forward_cost_per_stage.json").read_text(encoding="utf-8"))
    ratios = {line["backbone"]: line["ratios"] for line in report["lines"]}
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8").splitlines()
    for title, (key, sign) in ROWS.items():
        cells = [f"{sign}{ratios[name][key]:.3f}" for name in BACKBONES]
        assert f"| {title} | {' | '.join(cells)} |" in text
    forms = [next(line["forms"] for line in report["lines"] if line["backbone"] == name) for name in BACKBONES]
    compiling = [form["wsms_per_stage"]["first_step_s"] / form["wsms"]["first_step_s"] for form in forms]
    assert "Compiling takes {:.2f}, {:.2f} and {:.2f} of the time".format(*compiling) in " ".join(text)
