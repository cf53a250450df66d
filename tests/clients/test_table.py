"""docs/compatibility.md says what benchmarks/results/clients.json holds, and that holds a line for each test."""

import importlib
import json

from tests.clients import table
from tests.helpers.clients import FORMS
from tests.helpers.paths import ROOT

DOCUMENT = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")


def marked_tests():
    """ "file::test" → package, what is compared, and why each form fails that is known to, of every client's test."""
    for path in sorted((ROOT / "tests" / "clients").glob("test_*.py")):
        if path.name in table.TITLES:
            for name, test in vars(importlib.import_module(f"tests.clients.{path.stem}")).items():
                marks = {mark.name: mark for mark in getattr(test, "pytestmark", ())}
                if "clients" in marks:
                    cases = [case for case in marks["parametrize"].args[1] if not isinstance(case, str)]
                    why = {case.values[0]: f"no: {case.marks[0].kwargs['reason']}" for case in cases}
                    yield f"{path.name}::{name}", (*marks["clients"].args, why)


def test_the_document_has_the_tables():
    for title, text in table.tables(table.read()).items():
        assert f"### {title}\n\n{text}\n" in DOCUMENT, title


def test_what_is_not_supported_is_listed_with_its_reason():
    listed = DOCUMENT.partition("## Not supported\n")[2].partition("\n## ")[0]
    assert [line for line in listed.splitlines() if line.startswith("- ")] == table.reasons(table.read())


def test_every_test_has_a_line_and_every_line_a_test_and_its_reasons():
    found = {}
    for key, row in table.read().items():
        why = {form: verdict for form, verdict in row["forms"].items() if verdict != "yes"}
        found[key] = row["client"], row["what"], why
        assert list(row["forms"]) == list(FORMS)
    assert found == dict(marked_tests())


def test_all_lines_are_of_one_run():
    assert json.loads(table.RESULTS.read_text(encoding="utf-8"))["command"] == "python -m tests.clients"
