"""The tables of docs/compatibility.md, from benchmarks/results/clients.json: `python -m tests.clients.table`."""

import json

from tests.clients.__main__ import RESULTS
from tests.helpers.clients import FORMS

TITLES = {
    "test_weights.py": "Weights",
    "test_graphs.py": "Graphs and exports",
    "test_decoders.py": "Packages that build a model from its name",
    "test_trainers.py": "Training loops",
    "test_explanations.py": "Explanations, augmentation at test time, pruning of channels",
    "test_counts.py": "Counts",
}
COLUMNS = ("client", "version", "what is compared", "plain", "concat", "mean", "test")
HEAD = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def read() -> dict[str, dict]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]


def tables(rows: dict[str, dict]) -> dict[str, str]:
    """A table per file of tests, by its title."""
    found = {}
    for file, title in TITLES.items():
        lines = [_line(row, key.partition("::")[2]) for key, row in rows.items() if key.startswith(file)]
        found[title] = "\n".join([HEAD, *sorted(lines, key=str.casefold)])
    return found


def reasons(rows: dict[str, dict]) -> list[str]:
    """What is not supported, and why, once for all forms of which it is said."""
    found = []
    for row in rows.values():
        why = {verdict.removeprefix("no: ") for verdict in row["forms"].values() if verdict.startswith("no: ")}
        found += [f"- {row['client']}, {row['what']}: {one}." for one in sorted(why)]
    return sorted(found, key=str.casefold)


def _line(row: dict, test: str) -> str:
    verdicts = [row["forms"][form].partition(":")[0] for form in FORMS]
    return f"| {row['client']} | {row['version']} | {row['what']} | {' | '.join(verdicts)} | `{test}` |"


def main() -> None:
    rows = read()
    for title, table in tables(rows).items():
        print(f"### {title}\n\n{table}\n")
    print("\n".join(reasons(rows)))


if __name__ == "__main__":
    main()
