"""What goes wrong in the training script ends in one line that names the remedy, and loses nothing."""

import errno
import json
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import train_accelerate
from tests.helpers.image_folders import write_image_folder
from tests.helpers.machine_runs import PAIR
from tests.helpers.streams import write_shards
from tests.helpers.training_runs import FEW, ROOT, command, launch, metrics
from timm_wsms import cli_errors, evaluate
from timm_wsms.errors import UserError
from timm_wsms.evaluation.options import REMEDIES


def refused(capsys, output: Path, *arguments: str) -> str:
    """The one line that such a command ends with; nothing may have been written."""
    code = cli_errors.run(lambda: train_accelerate.main(["--output", str(output), *FEW, *arguments]))
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert not output.exists()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert line == lines[-1]
    return line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "wsms_resnet20_cifra"], ["no model wsms_resnet20_cifra", "wsms_resnet20_cifar"]),
        (["--model", "xyzzy-plugh"], ["no model xyzzy-plugh", "list_models"]),
        (["--model", "resnet20_cifar", "--baseline", "resnet21_cifar"], ["no model resnet21_cifar"]),
        (["--model", "wsms_crossvit_9_240"], ["crossvit_9_240", "cannot be staged"]),
        (["--model", "wsms_resnet20_cifar", "--model_kwargs.stages", "7"], ["stages", "3"]),
        (["--model", "wsms_resnet20_cifar", "--data.input_size", "[3, 2, 2]"], ["2"]),
        (["--model", "resnet20_cifar", "--model_kwargs.stagse", "2"], ["resnet20_cifar", "stagse"]),
        (["--model", "resnet20_cifar", "--model_kwargs.in_chans", "5"], ["in_chans"]),
        (["--model", "resnet20_cifar", "--model_kwargs.num_classes", "7"], ["10 classes", "model_kwargs.num_classes"]),
        (["--model", "resnet20_cifar", "--optimizer.name", "sdg"], ["sdg"]),
        (["--model", "resnet20_cifar", "--schedule.name", "onecycle", "--schedule.pct_start", "2"], ["pct_start"]),
        (["--model", "resnet20_cifar", "--precision", "fp16", "--data.workers", "0"], ["precision fp16", "cpu"]),
        (["--model", "resnet20_cifar", "--grad_accumulation", "3"], ["batch_size 16", "grad_accumulation 3"]),
        (["--model", "resnet20_cifar", "--batch_size", "41"], ["batch_size", "40"]),
        (["--model", "resnet20_cifar", "--data.source", "no/such/folder"], ["no/such/folder"]),
        (["--model", "resnet20_cifar", "--epoch", "2"], ["--epoch"]),
        (["--recipe", "recipes/nothing.yaml"], ["recipes/nothing.yaml"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(capsys, tmp_path, arguments, says):
    line = refused(capsys, tmp_path / "run", *arguments)
    for part in says:
        assert part in line


@pytest.fixture
def images(tmp_path):
    """A local image folder with two classes, 20 images each to train on and 10 to test on."""
    return write_image_folder(tmp_path / "images", train=20, test=10)


@pytest.mark.slow
def test_bad_data_is_one_line_and_leaves_nothing_behind(capsys, tmp_path, images):
    model = ["--model", "resnet20_cifar", "--data.source"]
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, tmp_path / "run", *model, str(tmp_path / "empty"))
    assert "species" in refused(capsys, tmp_path / "run", *model, str(images), "--data.label_column", "species")
    (images / "train" / "dog" / "03.png").write_bytes(b"no image")
    assert "row 23" in refused(capsys, tmp_path / "run", *model, str(images)).lower()
    kept = ["--data.on_bad_image", "skip", "--epochs", "1", "--output", str(tmp_path / "run")]
    train_accelerate.main([*model, str(images), *FEW, *kept])
    assert "1 images of split train left out" in capsys.readouterr().out


@pytest.mark.slow
def test_the_accuracy_is_of_the_images_that_could_be_decoded(capsys, tmp_path, images):
    for number, file in enumerate(sorted((images / "test").rglob("*.png"))):
        Image.fromarray(np.zeros((70 + number, 80, 3), np.uint8)).save(file)  # too large to be kept decoded
    file.write_bytes(b"no image")
    kept = ["--data.on_bad_image", "skip", "--data.workers", "0", "--epochs", "1", "--output", str(tmp_path / "run")]
    train_accelerate.main(["--model", "resnet20_cifar", "--data.source", str(images), *FEW, *kept])
    told = capsys.readouterr().out
    assert "1 images of split test left out" in told and "% of 19 test images" in told


@pytest.mark.slow
def test_weights_for_other_classes_are_one_line_and_as_a_checkpoint_a_beginning(capsys, tmp_path, images):
    folder = ROOT / "hub" / "models" / "resnet20_cifar10"
    source = ["--data.source", str(images)]
    file = ["--model", "resnet20_cifar", "--model_kwargs.checkpoint_path", str(folder / "model.safetensors")]
    line = refused(capsys, tmp_path / "run", *file, *source)
    assert all(part in line for part in ("size mismatch", "2 classes", "--model local-dir:"))
    checkpoint_ = ["--model", f"local-dir:{folder}", "--model_kwargs.pretrained", "true"]
    train_accelerate.main([*checkpoint_, *source, *FEW, "--epochs", "1", "--output", str(tmp_path / "run")])
    assert load_file(tmp_path / "run" / "model" / "model.safetensors")["fc.weight"].shape[0] == 2


@pytest.mark.parametrize(
    ("wrong", "arguments", "says"),
    [
        ((17, 2), [], ["Row 1 of split 'train', shard 2, has label 2", "2 classes", "label_column"]),
        (None, ["--data.test_size", "11"], ["10 samples were evaluated, but the data set has 11", "data.test_size"]),
        (None, ["--batch_size", "60"], ["50 images, fewer than one batch of 60"]),
    ],
)
def test_what_a_stream_turns_out_to_be_is_one_line(capsys, tmp_path, wrong, arguments, says):
    source = ["--data.source", str(write_shards(tmp_path / "shards", wrong=wrong)), "--data.streaming", "true"]
    settings = ["--model", "resnet20_cifar", "--batch_size", "16", "--epochs", "1", "--output", str(tmp_path / "run")]
    assert cli_errors.run(lambda: train_accelerate.main([*settings, *source, *arguments])) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and all(part in line for part in says), line


@pytest.mark.slow
def test_the_image_folders_result_names_its_classes_but_not_its_place(tmp_path, images):
    output = tmp_path / "run"
    train_accelerate.main(
        [*("--model", "resnet20_cifar", "--data.source", str(images)), *FEW, "--epochs", "1", "--output", str(output)]
    )
    assert json.loads((output / "model" / "config.json").read_text())["label_names"] == ["cat", "dog"]
    for name in ("README.md", "settings.yaml", "config.json"):
        assert str(tmp_path) not in (output / "model" / name).read_text()
    assert not (output / "scale.png").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_can_go_on(tmp_path, monkeypatch, capsys):
    arguments = ["--model", "resnet20_cifar", *FEW, "--epochs", "3", "--output", str(tmp_path), "--resume", "auto"]
    write = Path.write_bytes

    def full(self, data):
        if "epoch-0002" in str(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert cli_errors.run(lambda: train_accelerate.main(arguments)) == 2
    assert "error: the disk is full" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-0001"]
    train_accelerate.main(arguments)
    assert "resumed after epoch 1" in capsys.readouterr().out
    assert len(metrics(tmp_path)) == 3


@pytest.mark.slow
def test_a_disk_that_cannot_be_written_to_is_one_line_before_the_run_and_in_it(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)  # root may write wherever the disk lets it
        line = refused(capsys, tmp_path / "run", "--model", "resnet20_cifar")
    assert "read-only disk" in line and "choose another --output" in line

    def remounted(self, data):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "write_bytes", remounted)
    arguments = ["--model", "resnet20_cifar", *FEW, "--epochs", "1", "--output", str(tmp_path / "run")]
    assert cli_errors.run(lambda: train_accelerate.main(arguments)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "a disk that cannot be written to; choose another --output" in line


@pytest.mark.sweep  # needs to be root, or user namespaces
def test_a_real_read_only_disk_is_one_line(tmp_path):
    run = shlex.join([*command("--model", "resnet20_cifar", *FEW), "--output", str(tmp_path / "run")])
    mounted = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        f"mount -t tmpfs -o ro none {tmp_path} && exec {run}",
    ]
    done = subprocess.run(mounted, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "read-only disk; choose another --output" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_out_of_memory_names_the_settings_that_lower_it(tmp_path, monkeypatch, capsys):
    for fault in (lambda: torch.empty(2**46), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):

        def train_step(*_, fault=fault):
            if isinstance(fault, BaseException):
                raise fault
            fault()  # more than the address space has room for

        monkeypatch.setattr(train_accelerate, "train_step", train_step)
        arguments = ["--model", "resnet20_cifar", *FEW, "--output", str(tmp_path), "--resume", "auto"]
        assert cli_errors.run(lambda: train_accelerate.main(arguments)) == 2  # noqa: B023
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: out of memory")
        assert all(name in line for name in ("--batch_size", "--grad_accumulation", "--precision bf16"))


def test_a_loss_that_is_not_finite_ends_the_run_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match=r"loss is nan.*--lr"):
        train_accelerate.main(
            ["--model", "resnet20_cifar", *FEW, "--output", str(tmp_path), "--lr", "1e30", "--epochs", "3"]
        )


def test_a_fault_of_the_programs_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli_errors.run(lambda: 1 / 0)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("evaluation", [False, True])
def test_full_shared_memory_is_one_line_that_names_the_remedies(tmp_path, images, monkeypatch, capsys, evaluation):
    def full(_):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
        )

    for file in images.rglob("*.png"):
        Image.fromarray(np.zeros((70, 80, 3), np.uint8)).save(file)  # too large to be kept decoded
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # the workers are forked from this process
    if evaluation:
        model = timm.create_model("resnet20_cifar", num_classes=2)
        timm.models.save_for_hf(model, tmp_path / "model", safe_serialization=True)
        options = ["--data", str(images), "--workers", "4"]
        code = cli_errors.run(lambda: evaluate.main([str(tmp_path / "model"), *options]), REMEDIES)
    else:
        arguments = ["--model", "resnet20_cifar", "--data.source", str(images), *FEW, "--data.workers", "4"]
        code = cli_errors.run(lambda: train_accelerate.main([*arguments, "--output", str(tmp_path / "run")]))
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert line.startswith("error: the shared memory through which processes send images is full (/dev/shm has ")
    assert "--shm-size" in line and f"lower --{'' if evaluation else 'data.'}workers" in line


# --- as a program


@pytest.mark.slow
def test_as_a_program_bad_input_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(command("--model", "resnet21", "--output", "x"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no model resnet21; did you mean")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_under_a_launcher_ours_is_the_first_line(launchers, tmp_path, launcher):
    arguments = ["--model", "resnet21", "--output", str(tmp_path / "x")]
    if launcher == "accelerate":
        done = launch(*arguments, cwd=tmp_path)
        code, text = done.returncode, done.stdout + done.stderr
    else:
        script = Path(train_accelerate.__file__)
        code, text = launchers.launched(tmp_path / "log", PAIR, *arguments, script=script)
    assert code != 0
    assert text.splitlines()[0].startswith("error: there is no model resnet21")
    assert text.count("error: there is no model") == 1
    assert not (tmp_path / "x").exists()
