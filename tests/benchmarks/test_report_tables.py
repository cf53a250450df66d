"""The tables of docs/results.md agree with the results files. (README.md: tests/test_readme.py.)"""

import json

import pytest

from benchmarks.object_size import report_tables
from tests.helpers.paths import ROOT

REPORT = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()


def test_lines_of_made_up_results(tmp_path, monkeypatch):
    seeds = [{"against_plain": {"area_difference": by}} for by in (1.234, -0.5)] + [{"against_plain": None}]
    top1 = [{"mean": 50.04, "std": 1.0}, {"mean": 86.25, "std": 1.0}]
    row = {"form": "f", "group": "g", "n": 3, "top1": top1, "seeds": seeds, "area": {"mean": 53.246, "std": 0.404}}
    (tmp_path / "x.json").write_text(json.dumps({"forms": [row]}))
    monkeypatch.setattr(report_tables, "RESULTS", tmp_path)
    assert report_tables.load("x") == {("f", "g"): row}
    assert report_tables.sizes_figures(row) == "50.0 | 86.2 | 53.25 ± 0.40 | +1.23, −0.50"
    assert report_tables.errors({"n": 6, "at_one": {"mean": 97.487, "std": 0.0361}}) == "2.51 ± 0.04 (6)"
    assert report_tables.errors({"n": 1, "at_one": {"mean": 98.5, "std": None}}) == "1.50 (1)"
    assert report_tables.errors({"n": 0, "at_one": None}) == "not run"


@pytest.mark.parametrize(("name", "table"), [("unseen_sizes", "sizes_table"), ("mnist_scale", "errors_table")])
def test_the_report_has_the_tables_as_they_are(name, table):
    lines = getattr(report_tables, table)(report_tables.load(name))
    assert [line for line in lines if line not in REPORT] == []


@pytest.mark.parametrize("table", ["digits_table", "stages_table"])
def test_the_report_has_the_tables_of_digits(table):
    report = json.loads((report_tables.RESULTS / "mnist_sizes.json").read_text(encoding="utf-8"))
    lines = getattr(report_tables, table)(report)
    assert lines and [line for line in lines if line not in REPORT] == []


def test_lines_of_made_up_digits():
    def parts(*of_all):
        return [{"all": one, "by_size": []} for one in of_all]

    errors = [{"mean": one, "std": None} for one in (6.824, 1.5)]
    stages = [
        {"form": "concat", "plain": parts(4)[0], "whole": parts(2)[0], "without": parts(9, 3), "alone": []},
        {"form": "ms", "plain": parts(9)[0], "whole": parts(1)[0], "without": parts(5, 6, 7), "alone": parts(2, 3, 4)},
        {"form": "concat", "plain": parts(5)[0], "whole": parts(3.014)[0], "without": parts(8, 4), "alone": []},
    ]
    report = {"forms": [{"form": "plain", "group": "28", "errors": errors}], "stages": stages}
    assert report_tables.digits_table(report) == ["| 28 | plain | 6.82 | 1.50 |"]
    assert report_tables.stages_table(report) == [
        "| concat, the paper's, fewer channels | 2 | 4.50 | 2.51 | 8.50 | 3.50 |  |  |  |  |",
        "| MS, fewer channels | 1 | 9.00 | 1.00 | 5.00 | 6.00 | 7.00 | 2.00 | 3.00 | 4.00 |",
    ]
