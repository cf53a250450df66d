"""A process that torchrun has started anew goes on with the run of that torchrun, and with no other."""

import pytest
from accelerate.state import AcceleratorState

import train_accelerate
from timm_wsms.errors import UserError
from timm_wsms.training.fault_tolerance import elastic

FEW = ["--model", "resnet20_cifar", "--data.train_limit", "32", "--data.test_limit", "8", "--batch_size", "16"]


@pytest.fixture
def attempt(monkeypatch):
    """Lets this process be one of torchrun's: folder for its logs, number of the attempt."""

    def become(logs: str, number: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"{logs}/attempt_{number}/0/error.json" if logs else "")

    return become


def test_attempts_of_one_launcher_are_told_from_those_of_another(attempt):
    names = []
    for logs, number in (("/tmp/a/none_x1", 0), ("/tmp/a/none_x1", 12), ("/tmp/b/none_x2", 1), ("", 0)):
        attempt(logs, number)
        names.append(elastic.launcher())
    assert names == ["none_x1", "none_x1", "none_x2", None]  # without --rdzv-id all run ids are "none"


@pytest.mark.slow
def test_only_its_own_run_is_resumed_without_being_told_to(attempt, tmp_path, monkeypatch, capsys):
    arguments = [*FEW, "--epochs", "2", "--output", str(tmp_path / "run")]
    attempt("/tmp/a/none_x1", 0)
    train_epoch = train_accelerate.train_epoch

    def interrupted(trainer, state, checkpoints):
        if state.epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(trainer, state, checkpoints)

    with monkeypatch.context() as patch:
        patch.setattr(train_accelerate, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_accelerate.main(arguments)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for logs, number in (("/tmp/b/none_x2", 1), ("/tmp/a/none_x", 1), ("", 1)):
        attempt(logs, number)
        with pytest.raises(UserError, match=r"already holds a run; continue it with --resume auto"):
            train_accelerate.main(arguments)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Another launcher that is told to resume it makes it its own.
    attempt("/tmp/b/none_x2", 0)
    with monkeypatch.context() as patch:
        patch.setattr(train_accelerate, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_accelerate.main([*arguments, "--resume", "auto"])
    attempt("/tmp/b/none_x2", 0)  # machines came or went, which counts as no restart
    capsys.readouterr()
    train_accelerate.main(arguments)
    assert "resumed after epoch 1" in capsys.readouterr().out
