"""Two processes cannot train into one folder."""

import subprocess
import sys

import pytest

import train_accelerate
from tests.helpers.training_runs import FEW
from timm_wsms.errors import UserError
from timm_wsms.training.fault_tolerance import run_lock

pytestmark = pytest.mark.slow  # starts a process

OTHER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_process_trains_into_is_refused_until_that_one_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "WAIT", 0.2)
    arguments = ["--model", "resnet20_cifar", *FEW, "--epochs", "1", "--output", str(tmp_path), "--resume", "auto"]
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path / run_lock.LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training into"):
            train_accelerate.main(arguments)
        assert [path.name for path in tmp_path.iterdir()] == [run_lock.LOCK]
        other.kill()
    train_accelerate.main(arguments)
    train_accelerate.main(arguments)  # the first has let go of it
    assert (tmp_path / "model" / "model.safetensors").is_file()
