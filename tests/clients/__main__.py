"""Tries other packages on our networks and records what it finds: benchmarks/results/clients.json.

    python -m tests.clients            every package: `make test-clients`
    python -m tests.clients -k peft    some: says what it finds, and leaves the file as it is

So the file always is of one run. docs/compatibility.md has the table (`python -m tests.clients.table`).
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
        self.rows, self.missing = {}, set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        package, what = item.get_closest_marker("clients").args
        if report.when == "setup" and report.skipped:
            self.missing.add(package)
        elif report.when == "call" or report.failed:
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
    tests = [str(Path(__file__).parent)] if all(word.startswith("-") for word in arguments) else []
    code = pytest.main(["-m", "clients", "-p", "no:cacheprovider", *arguments, *tests], plugins=[recorder])
    if arguments or recorder.missing:
        print(json.dumps(recorder.rows, indent=1))
        absent = f"; not installed: {', '.join(sorted(recorder.missing))}" if recorder.missing else ""
        print(f"{RESULTS.name} is left as it is, since these are not all clients{absent}")
    else:
        rows = dict(sorted(recorder.rows.items()))
        RESULTS.write_text(json.dumps({**environment.record(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
