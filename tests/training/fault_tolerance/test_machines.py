"""Several machines, as network namespaces (tests/helpers/machines.py), each with a torchrun of its own.

Where namespaces may not be made, loopback addresses stand for machines.
"""

import time

import pytest

from tests.helpers.fault_runs import ONE, left_by, wait_for
from tests.helpers.machine_runs import HERE, newest
from tests.helpers.machines import loopback, machines, why_not

pytestmark = pytest.mark.slow  # runs under launchers
QUICK = [*ONE, "--model", "wsms_test_resnet"]


@pytest.fixture(scope="module")
def pair(request):
    """Two machines of the wanted kind; of that which is possible if none is wanted."""
    kind = getattr(request, "param", "loopback" if why_not() else "namespaces")
    if kind == "loopback":
        yield loopback(2)
    elif reason := why_not():
        pytest.skip(reason)
    else:
        with machines(2) as made:
            yield made


@pytest.fixture
def start(pair, launchers, tmp_path):
    """Starts a launcher on each machine; ends what is left of them."""
    started = []

    def start(output, *arguments, processes=1, fault=""):
        jobs = []
        for machine in pair:
            options = machine.torchrun(pair[0], 2, processes)
            log = tmp_path / machine.address
            jobs.append(launchers.launch(machine, log, options, *arguments, "--output", str(output), fault=fault))
        started.extend(jobs)
        return jobs

    yield start
    for job in started:
        job.end()


@pytest.fixture
def undisturbed(launchers, tmp_path):
    """What a run of so many processes on this computer leaves."""

    def run(processes, *arguments):
        options = [*HERE, "--nproc_per_node", str(processes)]
        job = launchers.launch(None, tmp_path / "here", options, *arguments, "--output", str(tmp_path / "undisturbed"))
        assert job.wait() == 0, job.text
        return left_by(tmp_path / "undisturbed")

    return run


@pytest.mark.sweep  # the next one includes it
def test_two_machines_train_as_two_processes_on_one(start, undisturbed, tmp_path):
    jobs = start(tmp_path / "run", *QUICK)
    assert [job.wait() for job in jobs] == [0, 0], jobs[0].text
    assert left_by(tmp_path / "run") == undisturbed(2, *QUICK)


def test_two_processes_on_each_of_two_machines_stop_and_resume(pair, start, undisturbed, tmp_path):
    output = tmp_path / "run"
    jobs = start(output, *QUICK, processes=2, fault="SIGTERM 3 4")
    assert [job.wait() for job in jobs] == [0, 0], jobs[0].text
    assert f"stopped by SIGTERM (process 3 on {pair[1].name}) and saved after epoch 1 and 2 steps" in jobs[0].text
    jobs = start(output, *QUICK, processes=2)
    assert [job.wait() for job in jobs] == [0, 0], jobs[0].text
    assert "resumed after epoch 1 and 2 steps" in jobs[0].text
    assert left_by(output) == undisturbed(4, *QUICK)


def test_a_link_that_is_down_ends_both_sides_with_the_machine(pair, start, tmp_path):
    """Also the side without the store: its calls to it block for many minutes."""
    if pair[1].pid is None:
        pytest.skip("loopback addresses have no link; the next test stops the processes of one instead")
    output, go = tmp_path / "run", tmp_path / "go"
    jobs = start(output, *QUICK, "--hang_timeout", "6", fault=f"wait:{go} 1 4")
    wait_for(lambda: newest(output) == "epoch-0001-step-000001", 300)
    pair[1].link(up=False)
    try:
        go.touch()
        wait_for(lambda: all("error: no progress" in job.text for job in jobs), 120)
    finally:
        pair[1].link(up=True)
    assert "6 seconds: process 1 on node2 does not answer" in jobs[0].lines[0]
    assert f"(the launcher or process 0, on {pair[0].address}) does not answer" in jobs[1].lines[0]


@pytest.mark.parametrize("pair", ["loopback"], indirect=True)
def test_a_machine_that_does_not_answer_ends_the_other_side(pair, start, tmp_path):
    output, go = tmp_path / "run", tmp_path / "go"
    jobs = start(output, *QUICK, "--hang_timeout", "6", fault=f"wait:{go} 1 4")
    wait_for(lambda: newest(output) == "epoch-0001-step-000001", 300)
    jobs[1].suspend()
    assert jobs[0].wait(100) == 1, jobs[0].text
    assert "no progress for 6 seconds: process 1 does not answer" in jobs[0].lines[0]
    jobs[1].resume()
    assert jobs[1].wait(100) == 1, jobs[1].text  # its launcher, whose rendezvous is gone
    assert newest(output) == "epoch-0001-step-000001"


@pytest.mark.sweep  # 13 seconds of processor time; benchmarks/reliability/machines.py tries it too
def test_a_worker_that_is_killed_ends_both_sides_at_once(pair, start, tmp_path):
    output, go = tmp_path / "run", tmp_path / "go"
    jobs = start(output, *QUICK, fault=f"wait:{go} 1 4")
    wait_for(lambda: newest(output) == "epoch-0001-step-000001", 300)
    jobs[1].workers()[0].kill()
    assert [job.wait(100) for job in jobs] == [1, 1]
    assert "a process there has ended" in jobs[0].lines[0]


@pytest.mark.parametrize("pair", ["namespaces", "loopback"], indirect=True)
def test_a_launcher_that_is_killed_ends_both_sides_at_once_with_its_machine(pair, start, tmp_path):
    """Were the run to end well, the other launcher would wait 300 seconds for this one: torchrun's exit barrier."""
    output, go = tmp_path / "run", tmp_path / "go"
    jobs = start(output, *QUICK, fault=f"wait:{go} 1 4")
    wait_for(lambda: newest(output) == "epoch-0001-step-000001", 300)
    jobs[1].launcher().kill()
    time.sleep(3)  # the process finds out within a second
    go.touch()
    assert jobs[0].wait(100) == 1, jobs[0].text
    told = f"the launcher on {pair[1].name} has ended; the run is saved after epoch 1 and 2 steps: "
    told += "continue with --resume auto"
    assert jobs[0].lines == [f"error on {pair[0].name}: {told}"]
    wait_for(lambda: f"error in process 1 on {pair[1].name}: {told}" in jobs[1].text)
    assert newest(output) == "epoch-0001-step-000002"
