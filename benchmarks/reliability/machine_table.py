"""The table of docs/scaling.md, from results/reliability/machines.json.

python -m benchmarks.reliability.machine_table
"""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.common.environment import ROOT

OUT = ROOT / "benchmarks" / "results" / "reliability" / "machines.json"
HEAD = [
    "| fault | what happens | machine named | seconds | launchers end after | equal |",
    "| --- | --- | --- | ---: | ---: | --- |",
]


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Its lines, one per fault."""
    return [*HEAD, *(f"| {name} | {' | '.join(cells(row))} |" for name, row in found.items())]


def cells(row: dict[str, Any]) -> list[str]:
    """What happened in a fault: in words, machines, seconds until the run went on or told why not, and so on."""
    if "failed" in row:
        return ["not survived", "", "", "", "no"]
    if "processes" in row:
        seconds = f"{row['seconds_until_next_checkpoint']}; {row['seconds_until_two_again']}"
        return ["goes on with one, then with two", "", seconds, "", yes(row["equal_up_to_rounding"], "up to rounding")]
    names = sorted({name for lines in row["lines"] for line in lines for name in named(line)})
    if row["codes"] == [0, 0]:
        what = "torchrun restarts it, and it goes on" if names else "goes on"
        seconds = row["seconds_until_next_checkpoint"]
        return [what, ", ".join(names), str(seconds), "", yes(row["equal"])]
    lines = [second for second in row["seconds_until_line"] if second is not None]
    what = "ends with a line" if lines else "ends without a line"
    ends = [str("never" if end is None else end) for end in row["seconds_until_launcher_ended"]]
    return [what, ", ".join(names), str(min(lines, default="")), ", ".join(ends), yes(row["equal"], "after the resume")]


def named(line: str) -> list[str]:
    """The machines that an error line names; the one it comes from only if it names no other."""
    message = re.sub(r"^error.*?: ", "", line)
    names = re.findall(r"\b(node\d)\b", message) + [
        f"node{number}" for number in re.findall(r"10\.77\.0\.(\d)", message)
    ]
    return names or re.findall(r"\b(node\d)\b", line)


def yes(equal: bool, how: str = "") -> str:
    return f"yes, {how}".rstrip(", ") if equal else "no"


if __name__ == "__main__":
    print("\n".join(table(json.loads(OUT.read_text(encoding="utf-8"))["faults"])))
