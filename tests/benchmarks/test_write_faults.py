"""A fault in each system call of a write: what was measured, what the document says, and a part of it tried here."""

import json
import shutil

import pytest

from benchmarks.reliability import write_faults
from benchmarks.reliability.write_jobs import Job, jobs
from tests.helpers.paths import ROOT


def test_what_was_measured_is_what_the_document_says():
    found = json.loads(write_faults.OUT.read_text(encoding="utf-8"))["jobs"]
    assert found.keys() == jobs().keys()
    problems = [problem for one in found.values() for problem in one["problems"]]
    assert [(one["call"], one["fault"], one["problem"]) for one in problems] == [
        ("rename", "SIGKILL", "missing until the next start")  # between two renames, as the document says
    ]
    document = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    assert f"{sum(one['faults'] for one in found.values())} faults" in document


def tried(name, place, calls, faults):
    return list(write_faults.faults(name, place, calls, faults))


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="install strace")


@needs_strace
@pytest.mark.slow
def test_no_fault_in_a_checkpoints_writes_costs_the_newest_one(tmp_path):
    found = tried(jobs()["checkpoint"], tmp_path, ("write", "rename"), ("EIO", "SIGKILL"))
    assert len(found) == 2 * (4 + 2)  # weights, optimizer, state, manifest; two renames
    assert [problems for *_, problems in found if problems] == []
    assert {outcome.code for *_, outcome, _ in found} >= {2, -9}


@needs_strace
@pytest.mark.slow
def test_a_write_in_place_is_found_out(tmp_path):
    def write(number):
        return lambda folder: (folder / "file").write_text(f"{number}" * 10)

    in_place = Job(write(1), write(2), write_faults.content)
    problems = {problem for *_, found in tried(in_place, tmp_path, ("write",), ("SIGKILL",)) for problem in found}
    assert problems == {"neither old nor new: file"}
