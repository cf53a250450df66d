"""docs/compatibility.md says what benchmarks/results/clients.json holds, and that holds a line for each test."""

import ast

from tests.clients import table
from tests.helpers.clients import FORMS
from tests.helpers.paths import ROOT

DOCUMENT = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")


def marked_tests():
    """ "file::test" → package and what is compared, of every test of a client."""
    for path in sorted((ROOT / "tests" / "clients").glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "client":
                    yield f"{path.name}::{node.name}", *(ast.literal_eval(argument) for argument in mark.args)


def test_the_document_has_the_tables():
    for title, text in table.tables(table.read()).items():
        assert f"### {title}\n\n{text}\n" in DOCUMENT, title


def test_what_is_not_supported_is_listed_with_its_reason():
    listed = DOCUMENT.partition("## Not supported\n")[2].partition("\n## ")[0]
    for reason in table.reasons(table.read()):
        assert reason in listed


def test_every_test_has_a_line_and_every_line_a_test():
    found = {key: (row["client"], row["what"]) for key, row in table.read().items()}
    assert found == {key: said for key, *said in marked_tests() for said in [tuple(said)]}
    for row in table.read().values():
        assert list(row["forms"]) == list(FORMS)
        assert all(verdict == "yes" or verdict.startswith("no: ") for verdict in row["forms"].values())
