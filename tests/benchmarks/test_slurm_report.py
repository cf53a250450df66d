"""docs/slurm.sbatch under a real Slurm: what was measured, and what the document says."""

import json

from benchmarks.reliability import slurm
from tests.helpers.paths import ROOT


def test_a_warned_job_was_requeued_and_resumed_and_an_error_ended_one():
    report = json.loads(slurm.OUT.read_text(encoding="utf-8"))
    warned, failed = report["jobs"].values()
    assert warned["equal"] and warned["requeued"] == 1 and warned["states"][-1][1] == "COMPLETED"
    kinds = [line.split()[0].rstrip(":") for line in warned["lines"]]
    assert kinds == ["SIGUSR1", "SIGUSR1", "stopped", "resumed", "resumed"]  # one line of each task but the second kind
    assert failed["requeued"] == 0 and failed["states"][-1][1] == "FAILED"
    assert "lr 0.05 → 0.3" in failed["lines"][0]
    document = " ".join((ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").split())
    assert report["slurm"].split()[-1] in document
