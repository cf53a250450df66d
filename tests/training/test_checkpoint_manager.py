"""Resuming with other images than those a run was started with."""

import json
import shutil
from pathlib import Path

import pytest

import train_accelerate
from tests.helpers.fault_runs import images
from tests.helpers.streams import write_shards
from timm_wsms.errors import UserError
from timm_wsms.training import checkpoint

pytestmark = pytest.mark.slow  # whole training runs

SMALL = ["--model", "resnet20_cifar", "--batch_size", "16", "--lr", "0.01", "--checkpoint_every_steps", "1"]


def train(output: Path, *arguments: str) -> None:
    train_accelerate.main([*SMALL, "--output", str(output), "--keep_last", "9", *arguments])


def saved_shards(output: Path) -> int | None:
    folder = checkpoint.newest(output)
    assert folder is not None
    return json.loads((folder / "state.json").read_text())["extra"]["shards"]


def test_a_source_in_another_number_of_shards_is_another_order(tmp_path, capsys):
    """With a limit, too: a row's number, from which its augmentation follows, has its shard's in it."""
    source = write_shards(tmp_path / "shards", train=(25, 25))
    limited = ["--data.train_limit", "48", "--data.test_limit", "10"]
    arguments = ["--data.source", str(source), "--data.streaming", "true", "--data.workers", "0", "--resume", "auto"]
    for output, more in ((tmp_path / "whole", []), (tmp_path / "limited", limited)):
        train(output, *arguments, *more, "--epochs", "1")
        assert saved_shards(output) == 2
    shutil.rmtree(source)
    write_shards(source, train=(20, 20, 10))
    for output, more in ((tmp_path / "whole", []), (tmp_path / "limited", limited)):
        again = [*arguments, *more, "--epochs", "2"]
        with pytest.raises(UserError, match=r"with 2 shards of training images, not 3; .*--resume_with_changes true"):
            train(output, *again)
        assert saved_shards(output) == 2
    train(output, *again, "--resume_with_changes", "true")
    assert "resumed after epoch 1" in capsys.readouterr().out
    assert saved_shards(output) == 3


def test_a_position_beyond_the_end_of_a_shorter_epoch_is_refused_and_the_run_stays_as_it_was(tmp_path, capsys):
    long, short = (["--data.train_limit", n, "--data.test_limit", "5", "--epochs", "1"] for n in ("50", "20"))
    train(tmp_path, *long)
    shutil.rmtree(tmp_path / "checkpoints" / "epoch-0001")
    with pytest.raises(UserError, match=r"000003 lies 3 steps into an epoch, which now has 1; .*--output$") as error:
        train(tmp_path, *short, "--resume", "auto", "--resume_with_changes", "true")
    assert len(str(error.value).splitlines()) == 1
    # Both remedies are good for something.
    capsys.readouterr()
    train(tmp_path, *long, "--resume", "auto")
    assert "resumed after epoch 0 and 3 steps" in capsys.readouterr().out
    for name in ("epoch-0001", "epoch-0000-step-000003", "epoch-0000-step-000002"):
        shutil.rmtree(tmp_path / "checkpoints" / name)
    train(tmp_path, *short, "--resume", "auto", "--resume_with_changes", "true")
    assert "resumed after epoch 0 and 1 steps" in capsys.readouterr().out


def test_a_renamed_class_is_refused_since_its_number_may_be_anothers(tmp_path, capsys):
    source = images(tmp_path / "images")
    arguments = ["--data.source", str(source), "--data.workers", "0", "--data.test_limit", "4", "--resume", "auto"]
    train(tmp_path / "run", *arguments, "--epochs", "1")
    for split in ("train", "test"):
        (source / split / "cat").rename(source / split / "zebra")  # as many classes, as many images
    with pytest.raises(UserError, match=r'class 1 was "cat" and now is "dog"; .*--resume_with_changes true') as error:
        train(tmp_path / "run", *arguments, "--epochs", "2")
    assert len(str(error.value).splitlines()) == 1
    train(tmp_path / "run", *arguments, "--epochs", "2", "--resume_with_changes", "true")
    assert "resumed after epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_that_went_to_another_class_is_refused(tmp_path, split):
    """As many images as before, under the same names of classes."""
    source = images(tmp_path / "images")
    arguments = ["--data.source", str(source), "--data.workers", "0", "--resume", "auto"]
    train(tmp_path / "run", *arguments, "--epochs", "1")
    moved = sorted((source / split / "cat").iterdir())[0]
    moved.rename(source / split / "dog" / "moved.png")
    with pytest.raises(UserError, match=r"started with other labels, .*--resume_with_changes true") as error:
        train(tmp_path / "run", *arguments, "--epochs", "2")
    assert len(str(error.value).splitlines()) == 1
    train(tmp_path / "run", *arguments, "--epochs", "2", "--resume_with_changes", "true")
    assert checkpoint.newest(tmp_path / "run").name == "epoch-0002"
