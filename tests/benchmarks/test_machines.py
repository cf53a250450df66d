"""Faults of several machines: what was measured is what docs/scaling.md says, and what has been promised."""

import json

import pytest

from benchmarks.reliability import machine_elastic, machine_faults, machine_table
from tests.helpers.paths import ROOT

FOUND = json.loads(machine_table.OUT.read_text(encoding="utf-8"))["faults"]


def test_the_table_is_that_of_the_results():
    document = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert "\n".join(machine_table.table(FOUND)) in document
    tried = {*FOUND}
    for name in {*machine_faults.faults(0), machine_elastic.NAME} - tried:
        assert f"“{name}”" in document  # among what was not run


@pytest.mark.parametrize("name", FOUND)
def test_nothing_is_lost_and_a_line_names_the_machine(name):
    row = FOUND[name]
    assert row.get("equal", row.get("equal_up_to_rounding")) is True
    if "processes" in row:
        assert (row["codes"], row["processes"]) == ([0, 0], [2, 1, 2])
    if row["codes"] != [0, 0]:
        assert machine_table.cells(row)[1], "no machine is named"


def test_cells():
    row = {"codes": [1, None], "lines": [["error: process 1 on node2"], []], "seconds_until_line": [3, None]}
    row |= {"seconds_until_launcher_ended": [4.5, None], "equal": False}
    assert machine_table.cells(row) == ["ends with a line", "node2", "3", "4.5, never", "no"]
