"""Tries other packages on our networks and records what it finds: benchmarks/results/clients.json.

    python -m tests.clients                           every package that is installed: `make test-clients`
    python -m tests.clients tests/clients/test_fx.py  some; the lines of all others stay

docs/compatibility.md has the table (`python -m tests.clients.table`).
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.common import environment
from tests.helpers.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "clients.json"


class Recorder:
    """A plugin of pytest that keeps what became of each test."""

    def __init__(self):
        self.rows = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.when == "call" or report.failed:
            package, what = item.get_closest_marker("clients").args
            key = f"{Path(item.location[0]).name}::{item.originalname}"
            row = {"client": package, "what": what, "version": version(package), "forms": {}}
            forms = self.rows.setdefault(key, row)["forms"]
            forms[item.callspec.params["form"]] = self.verdict(report)
        return report

    @staticmethod
    def verdict(report) -> str:
        if report.failed:
            return "FAILED"
        return "yes" if report.passed else f"no: {report.wasxfail}"


def main(arguments):
    recorder = Recorder()
    chosen = (
        arguments if any(not word.startswith("-") for word in arguments) else [*arguments, str(Path(__file__).parent)]
    )
    code = pytest.main(["-m", "clients", "-p", "no:cacheprovider", *chosen], plugins=[recorder])
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
    rows = dict(sorted((kept | recorder.rows).items()))
    RESULTS.write_text(json.dumps({**environment.record(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
