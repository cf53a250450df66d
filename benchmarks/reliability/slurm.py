"""docs/slurm.sbatch under a real Slurm: warned before the time limit, requeued, resumed.

    python -m benchmarks.reliability.slurm      # needs root, Linux, Debian's slurm-wlm and munge; a quarter of an hour

Slurm's controller and two node daemons run on two network namespaces that stand for machines
(tests/helpers/machines.py). Each node claims a GPU, for which /dev/null stands, so that the script's own options are
used; the tasks train on the CPU. After two epochs the job's time limit is shortened to the next minute but one, so
that Slurm warns it; once it is requeued, its limit is what it was. Its end is compared bit for bit with that of an
undisturbed run of two processes. A second job, whose settings contradict the folder, has to fail and
not to be requeued.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common.environment import ROOT, record
from tests.helpers.fault_runs import EVERYTHING, SETTINGS, left_by
from tests.helpers.machine_runs import PAIR, Launchers, newest
from tests.helpers.machines import NamespaceMachine, machines

OUT = ROOT / "benchmarks" / "results" / "reliability" / "slurm.json"
SBATCH = [
    *("sbatch", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"),
    *("--time=30", "--signal=USR1@60"),  # minutes; seconds. Slurm may send it up to a minute early
]
WORDS = [*EVERYTHING, "--epochs", "16"]
LIMIT = 1500  # seconds for a job, with the two minutes that Slurm holds a requeued one back
CONFIGURATION = """
ClusterName=test
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node[1-2] CPUs=4 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A controller on the first machine and a node daemon on each.

    Args:
        folder: for all of their files.
        pair: the machines.
        environment: of the jobs, in addition.
    """

    def __init__(self, folder: Path, pair: list[NamespaceMachine], **environment: str):
        self._folder, self._pair = folder, pair
        own = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self._environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT), **own, **environment}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Starts it; ends it in the end."""
        folder = self._folder
        for name in ("state", "node1", "node2"):
            (folder / name).mkdir(parents=True)
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(os.urandom(128))
        munge = ["munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket"]
        munge += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "seed", "log")]
        commands = [
            [*munge, "--force"],  # the folder of the key may be written to by others, as /tmp
            [*self._pair[0].enter(), "slurmctld", "-D", "-c"],
            *([*machine.enter(), "slurmd", "-D", "-N", machine.name] for machine in self._pair),
        ]
        daemons: list[subprocess.Popen] = []
        try:
            for command in commands:
                with (folder / "daemons.log").open("a") as log:
                    kept = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                    daemons.append(subprocess.Popen(command, env=self._environment, **kept))  # type: ignore[call-overload]
                time.sleep(2)
            yield
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(20)

    def call(self, *command: str) -> str:
        """Runs one of Slurm's commands on the first machine; returns what it prints.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        words = [*self._pair[0].enter(), *command]
        done = subprocess.run(words, env=self._environment, check=True, capture_output=True, text=True, cwd=ROOT)
        return done.stdout

    def job(self, log: Path, *words: str, shorten: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Runs the script as a job until it is done; returns its states with the seconds until them, and its end.

        Args:
            log: of the job.
            words: the training script's.
            shorten: whether it is time to shorten the job's time limit, which is done once.
        """
        told = self.call(*SBATCH, f"--output={log}", "docs/slurm.sbatch", *words)
        number, begun = told.split()[-1], time.monotonic()
        states: list[tuple[float, str]] = []
        shortened = None
        while time.monotonic() - begun < LIMIT:
            shown = dict(re.findall(r"(\w+)=(\S+)", self.call("scontrol", "show", "job", number)))
            state = shown["JobState"]
            if not states or states[-1][1] != state:
                states.append((round(time.monotonic() - begun, 1), state))
                print(*states[-1], flush=True)
            if state == "RUNNING" and shortened is None and shorten():
                shortened = round(time.monotonic() - begun, 1)
                minutes, seconds = shown["RunTime"].split(":")[1:]
                self._limit(number, int(minutes) + (int(seconds) > 0) + 1)
            if state == "PENDING" and shortened:
                self._limit(number, 30)
            if state in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"):
                break
            time.sleep(1)
        text = log.read_text()
        lines = re.findall(r"^(?:error|SIGUSR1|stopped by|resumed after).*", text, re.MULTILINE)
        return {
            "states": states,
            "shortened": shortened,
            "requeued": int(shown["Restarts"]),
            "exit_code": shown["ExitCode"],
            "lines": lines,
        }

    def _limit(self, number: str, minutes: int) -> None:
        self.call("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place), Path(place) / "run"
        with machines(2) as pair:
            cluster = Cluster(folder / "slurm", pair, OUTPUT=str(output))
            with cluster.running():
                warned = cluster.job(folder / "log", *WORDS, shorten=lambda: newest(output) >= "epoch-0002")
                print((folder / "log").read_text()[-8000:], flush=True)
                if warned["states"][-1][1] != "COMPLETED":
                    raise RuntimeError(json.dumps(warned))
                (output / "model" / "config.json").unlink()  # else there would be nothing to requeue for
                failed = cluster.job(folder / "log of an error", *WORDS, "--lr", "0.3")
        with Launchers() as starts:
            apart = folder / "undisturbed"
            job = starts.launch(None, folder / "log of it", PAIR, *WORDS, "--output", str(apart))
            if job.wait(LIMIT):
                raise RuntimeError(job.text)
        warned |= {"checkpoint": newest(output), "equal": left_by(output) == left_by(apart)}
    version = subprocess.run(["slurmd", "-V"], check=True, capture_output=True, text=True).stdout.strip()
    rows = {"warned, requeued, resumed": warned, "settings that contradict the folder": failed}
    report = {"what": __doc__.partition("\n")[0], **record(), "slurm": version, "sbatch": SBATCH, "jobs": rows}
    text = json.dumps(report, indent=1, ensure_ascii=False).replace(place, "…")
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
