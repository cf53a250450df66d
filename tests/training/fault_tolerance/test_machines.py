"""Several machines, as network namespaces (tests/helpers/machines.py), each with a torchrun of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.fault_runs import DRIVER, ONE, wait_for
from tests.helpers.machines import machines, why_not
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # runs under launchers


@pytest.fixture
def pair():
    """Two machines."""
    if reason := why_not():
        pytest.skip(reason)
    with machines(2) as made:
        yield made


def test_a_link_that_is_down_ends_both_sides_with_the_machine(pair, tmp_path):
    """Also the side without the store: its calls to it block for many minutes."""
    output, go = tmp_path / "run", tmp_path / "go"
    logs = [tmp_path / machine.name for machine in pair]
    arguments = [*ONE, "--hang_timeout", "6", "--output", str(output)]
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.machine_driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **settings},
    ) as driver:
        assert driver.stdin and driver.stdout
        for machine, log in zip(pair, logs, strict=True):
            order = {
                "arguments": [*machine.torchrun(pair[0], 2), str(DRIVER), *arguments],
                "pid": machine.pid,
                "log": str(log),
                "environment": {"FAULT": f"wait:{go} 1 4"},
            }
            driver.stdin.write(json.dumps(order) + "\n")
            driver.stdin.flush()
            assert driver.stdout.readline()
        wait_for((output / "checkpoints" / "epoch-0001-step-000001").exists, 300)
        pair[1].link(up=False)
        go.touch()
        wait_for(lambda: all("error: no progress" in log.read_text() for log in logs), 120)
    told = [next(line for line in log.read_text().splitlines() if "error: no progress" in line) for log in logs]
    assert "6 seconds: process 1 on node2 does not answer" in told[0]
    assert f"(the launcher or process 0, on {pair[0].address}) does not answer" in told[1]
