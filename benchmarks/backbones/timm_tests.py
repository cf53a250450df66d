"""Runs timm's own tests/test_models.py on `wsms_*` names; results/timm_suite.json has the tally and every failure.

    pip download timm==1.0.31 --no-binary :all: --no-deps && tar xzf timm-1.0.31.tar.gz
    python -m benchmarks.backbones.timm_tests --timm timm-1.0.31    one backbone of each of timm's model files
    python -m benchmarks.backbones.timm_tests --timm timm-1.0.31 --names "swin*" "vit_*" --minutes 60

It goes on where it stopped. `--timm` is a folder with timm's source, or a git directory of it (then HEAD is taken); its
version should be that of the timm installed. Of the file those tests count that timm runs on all of its models: their
names come from `timm.list_models`. What those lists give for the chosen backbones, each test gets as `wsms_<name>`, so
that timm's exclusions hold by the backbone's name. Where that fails, the backbone itself is tried too.

A few things are adapted from outside; no test's body is changed. The lists; `EARLY_POOL_MODELS`, a tuple of classes,
holds a network too whose backbone is of such a class; `name.startswith("hrnet")` is true of `wsms_hrnet…`, and for
`fnmatch` `wsms_inception_v3` is an `inception_v3*`. Weights are random numbers from a bank.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import timm_wsms  # noqa: F401  registers the names
from benchmarks.backbones.all_backbones import (
    TABLE,
    Table,
    backbones,
    described,
    locked,
    matches,
    order,
    smallest_of_each_file,
)
from benchmarks.backbones.timm_tests_plugin import Twins
from benchmarks.common.environment import record

LEFT_OUT = {
    "TorchScript": "deprecated in torch, and not supported",
    "pretrained": "test_model_inference, test_model_load_pretrained and test_model_features_pretrained need the Hub",
    "hard-coded names": "tests of the inner parts of single timm models",
    "tags": "test_model_default_cfgs takes each architecture once, with its default tag",
}
Outcomes = dict[str, dict[str, str]]  # name of a model → name of a test → "passed", "skipped: why" or "failed: why"


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    names, not_staged = choose(arguments)
    source, version = test_file(Path(arguments.timm))
    results = Results(Path(arguments.out), {"timm_of_the_tests": version, "max_params": arguments.max_params})
    plugin = Twins(names, results, arguments)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test_models.py"
        file.write_text(source, encoding="utf-8")
        (file.parent / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        options = ["-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:timeout", "--rootdir", folder]
        pytest.main([str(file), *options], plugins=[plugin])
    print(json.dumps(results.tally(), indent=1), f"not staged: {' '.join(not_staged) or 'none'}")


def choose(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Backbones to run, smallest first, and those among them that have no `wsms_` form."""
    wanted = [name for name in backbones() if matches(name, arguments.names or ["*"])]
    rows = sorted(described(wanted, Table(Path(arguments.table))), key=order)
    rows = rows if arguments.names else smallest_of_each_file(rows)
    fit = [row["name"] for row in rows if int(row["backbone_params"]) <= arguments.max_params]
    known = {*timm.list_models("wsms_*")}
    return [name for name in fit if f"wsms_{name}" in known], [name for name in fit if f"wsms_{name}" not in known]


def test_file(timm_source: Path) -> tuple[str, str]:
    """The text of timm's tests/test_models.py, and the version of the timm that it stands in."""

    def read(path: str) -> str:
        if (timm_source / path).is_file():
            return (timm_source / path).read_text(encoding="utf-8")
        command = ["git", "-C", str(timm_source), "show", f"HEAD:{path}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    found = re.search(r"'(.+)'", read("timm/version.py"))
    return read("tests/test_models.py"), found.group(1) if found else "unknown"


class Results:
    """The JSON file. It is written after every test; several processes may write to it at once."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.settings = settings
        self.outcomes: Outcomes = {}
        self.read()

    def read(self) -> None:
        if self.path.exists():
            self.outcomes = json.loads(self.path.read_text(encoding="utf-8"))["outcomes"]

    def add(self, name: str, test: str, outcome: str) -> None:
        with locked(self.path.parent):
            self.read()
            self.outcomes.setdefault(name, {})[test] = outcome
            head = {
                "what": "timm's own tests/test_models.py on wsms_* names, and on the backbone where that fails",
                **record(),
                **self.settings,
                "left_out": LEFT_OUT,
                "tally": self.tally(),
                "failures": self.failures(),
            }
            each = ",\n".join(f"    {json.dumps(name)}: {json.dumps(found)}" for name, found in self.outcomes.items())
            text = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
            new = self.path.with_suffix(".new")
            new.write_text(f'{text},\n  "outcomes": {{\n{each}\n  }}\n}}\n', encoding="utf-8")
            new.replace(self.path)

    def failures(self) -> list[dict[str, str]]:
        """Every test that a `wsms_` name fails, with what the backbone gives there."""
        return [
            {"name": name, "test": test, "outcome": outcome, "backbone": self.outcomes.get(name[5:], {}).get(test, "")}
            for name, found in self.outcomes.items()
            for test, outcome in found.items()
            if name.startswith("wsms_") and outcome.startswith("failed")
        ]

    def tally(self) -> dict[str, Any]:
        """Numbers of tests passed, failed and skipped, altogether and of each test; and why tests were skipped."""
        ours = {name: found for name, found in self.outcomes.items() if name.startswith("wsms_")}
        tests: dict[str, Counter[str]] = {}
        for found in ours.values():
            for test, outcome in found.items():
                tests.setdefault(test, Counter())[outcome.partition(":")[0]] += 1
        against = Counter(entry["backbone"].partition(":")[0] or "not tried yet" for entry in self.failures())
        skips = [outcome for found in ours.values() for outcome in found.values() if outcome.startswith("skipped")]
        return {
            "models": len(ours),
            "tests": dict(sum(tests.values(), Counter())),
            "where_ours_failed_the_backbone": dict(against),
            "each_test": {test: dict(counts) for test, counts in tests.items()},
            "skips": dict(Counter(skips)),
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timm", required=True, help="folder with timm's source, or a git directory of it")
    parser.add_argument("--names", nargs="+", help="backbones, with wildcards; else one of each model file")
    parser.add_argument("--tests", nargs="+", default=["*"], help="tests, with wildcards")
    parser.add_argument("--max_params", type=float, default=300e6, help="no backbones with more parameters")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no test after so many")
    parser.add_argument("--timeout", type=int, default=600, help="seconds of processor time a test may take")
    parser.add_argument("--retry", action="store_true", help="also what failed before")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", default=str(TABLE), help="coverage.csv: which backbones there are, and their sizes")
    parser.add_argument("--out", default=str(TABLE.with_name("timm_suite.json")))
    return parser


if __name__ == "__main__":
    main()
