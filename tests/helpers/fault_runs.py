"""Small runs that something happens to, and what they leave, for comparison by value."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from typing_extensions import Self

from tests.helpers.image_folders import write_image_folder
from tests.helpers.paths import ROOT

DRIVER = Path(__file__).with_name("fault_driver.py")
SETTINGS = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
TIMES = {"seconds", "images_per_second", "data_wait", "waited"}
# 50 images in batches of 16: 3 updates an epoch.
SMALL = [
    *("--data.train_limit", "50", "--data.test_limit", "10", "--batch_size", "16", "--lr", "0.05", "--epochs", "2"),
    *("--optimizer.name", "momentum", "--schedule.name", "onecycle", "--ema_decay", "0.5", "--clip_grad", "1"),
]
# All that is random in a step, and all that a step carries over to the next.
EVERYTHING = [
    *("--model", "wsms_resnet20_cifar", "--model_kwargs.drop_rate", "0.3", "--model_kwargs.stages", "2"),
    *("--mixup", "0.4", "--cutmix", "1", "--label_smoothing", "0.1", "--grad_accumulation", "2", *SMALL),
]
# The same with a checkpoint after every step.
ONE = [*EVERYTHING, "--checkpoint_every_steps", "1", "--resume", "auto"]
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
    *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
]


def images(folder: Path, train: int = 25) -> Path:
    """Writes images of different sizes: `train` of each class to train on and 5 to test on."""
    return write_image_folder(folder, train=train, test=5, sides=(30, 60))


def start(launcher: list[str], *arguments: str) -> subprocess.Popen:
    """Starts the training script, in a process group of its own."""
    return subprocess.Popen(
        [*launcher, str(DRIVER), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


class Server:
    """Starts runs without the time for importing; a context manager.

    Args:
        environment: of all of them, in addition.
    """

    def __init__(self, **environment: str):
        self._environment = {**os.environ, **SETTINGS, **environment}

    def __enter__(self) -> Self:
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fork_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self._environment,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._driver:  # closes the pipes, which a run that is left may still hold, and waits
            self._driver.kill()

    def order(self, log: Path, **order: object) -> int:
        """Has the driver start something that prints to a file, whose old text goes; returns the process id."""
        assert self._driver.stdin and self._driver.stdout
        for old in (log, code_of(log)):
            old.unlink(missing_ok=True)
        self._driver.stdin.write(json.dumps({"log": str(log), **order}) + "\n")
        self._driver.stdin.flush()
        return int(self._driver.stdout.readline())

    def start(self, log: Path, *arguments: str, fault: str = "", processes: int = 1) -> int:
        """Starts a run that prints to a file; returns its process id, which is its process group's too.

        Several processes are started with the environment that torchrun gives them; the id is the first one's.
        """
        self._last = log
        return self.order(log, arguments=arguments, fault=fault, processes=processes)

    def wait(self) -> int:
        """The exit code of the run that was started last; negative if a signal ended it.

        Of several processes the first code that is not 0.
        """
        code = code_of(self._last)
        while not code.exists():  # which may take hours
            assert self._driver.poll() is None, "the driver has ended"
            time.sleep(0.05)
        return int(code.read_text().split()[0])

    def finished(self, log: Path, *arguments: str, processes: int, fault: str = "") -> tuple[int, str]:
        """Lets a run of several processes come to its end; returns its exit code and all that it printed."""
        self.start(log, *arguments, fault=fault, processes=processes)
        return self.wait(), log.read_text()


def code_of(log: Path) -> Path:
    """The file that tells how a run or a launcher ended: its exit code, and its processor time in seconds."""
    return log.with_name(f"{log.name}.code")


def killed_and_resumed(
    server: Server, arguments: list[str], folder: Path, delays: list[float], *, saving: bool = False
) -> int:
    """Kills a run after each of the delays (seconds) and resumes it; then lets it come to its end.

    Args:
        server: starts it.
        arguments: its settings.
        folder: for the run (`run`) and what it prints (`log`).
        delays: from the start, or from when the next checkpoint is about to be written.
        saving: which of the two.

    Returns:
        How many times it was killed; the other times it was done before.
    """
    output, log, killed = folder / "run", folder / "log", 0
    for delay in delays:
        begun = time.time()
        pid = server.start(log, *arguments, "--output", str(output))
        end = time.monotonic() + 30
        while saving and not writing(output / "checkpoints", begun) and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        code = server.wait()
        assert code in (0, -signal.SIGKILL), log.read_text()
        killed += code != 0
    server.start(log, *arguments, "--output", str(output))
    assert server.wait() == 0, log.read_text()
    return killed


def writing(checkpoints: Path, since: float) -> bool:
    """Whether a checkpoint is being written; what an earlier process has left half written is none."""
    try:
        return any(path.stat().st_mtime > since for path in checkpoints.glob(".*.new"))
    except FileNotFoundError:  # it is whole now
        return False


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def left_by(output: Path) -> dict[str, object]:
    """What a run has left: metrics, the final checkpoint and the model, without anything that tells the time."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    last = max((output / "checkpoints").glob("epoch-????"))
    state = json.loads((last / "state.json").read_text())
    result: dict[str, object] = {"metrics": untimed(rows), "checkpoint": last.name, "state": untimed(state)}
    for path in [*last.glob("*.safetensors"), output / "model" / "model.safetensors"]:
        result[str(path.relative_to(output))] = tensors_sum(path)
    return result


def tensors_sum(path: Path) -> str:
    """SHA-256 of all tensors and their names; the file's head also tells the time, as a hash."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def untimed(tree: object) -> object:
    """Without what tells the time."""
    if isinstance(tree, dict):
        return {key: untimed(value) for key, value in tree.items() if key not in TIMES}
    return [untimed(value) for value in tree] if isinstance(tree, list) else tree
