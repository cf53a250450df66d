"""SECURITY.md: each promise names tests that there are."""

import re

from tests.helpers.paths import ROOT

PROMISED = "**What the package promises"


def promises() -> list[str]:
    """The items of the list of promises."""
    _, _, text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition(PROMISED)
    items = text.partition("\n\n`python -m")[0].split("\n- ")[1:]
    assert len(items) > 5
    return items


def test_each_promise_names_its_tests_and_there_are_such():
    for promise in promises():
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise)
        assert named, f"no test is named: {promise}"
        for file, test in named:
            assert re.search(rf"^def {test or 'test_'}", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
