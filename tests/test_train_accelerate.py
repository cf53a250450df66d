"""The training script, called as `main([...])` on a few real digits, against independent references."""

import copy
import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from stream_sources import write_shards
from torch.nn import functional as F

import train_accelerate
from timm_wsms.data import DataSettings, load_splits, make_loader
from timm_wsms.errors import UserError
from timm_wsms.training import checkpoint, epoch, faults, learner
from timm_wsms.training.settings import Settings

ROOT = Path(__file__).parent.parent
FEW = ["--data.train_limit", "40", "--data.test_limit", "21", "--batch_size", "16", "--lr", "0.05"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A run with a baseline, in bf16; returns its output folder and what it printed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    output = tmp_path_factory.mktemp("run") / "digits"
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        train_accelerate.main(["--recipe", recipe, *FEW, "--epochs", "2", "--output", str(output), "--eval_every", "1"])
    return output, "\n".join(printed)


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_accelerate.py"), *arguments]


def metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def without_times(output: Path) -> list[dict]:
    times = ("seconds", "images_per_second", "data_wait")
    return [{key: value for key, value in row.items() if key not in times} for row in metrics(output)]


# --- the result


def test_the_end_tells_what_came_out_and_how_to_load_it(result):
    output, printed = result
    table = printed[printed.index("model  ") :].splitlines()
    assert table[0].split()[-14:] == ["8", "px", "12", "px", "16", "px", "20", "px", "24", "px", "28", "px", "32", "px"]
    rows = {line.split()[0]: line for line in table[2:4]}
    assert rows.keys() == {"resnet20_cifar", "wsms_resnet20_cifar"}
    for name, folder in {"resnet20_cifar": output / "baseline", "wsms_resnet20_cifar": output}.items():
        measured = [f"{metrics(folder)[-1][top]:.2f}" for top in ("test_top1", "test_top5")]
        assert rows[name].split()[5:7] == measured
        parameters = sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters())
        assert f"{parameters / 1e6:.3f}" in rows[name].split()
    assert (output / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert str(output / "scale.png") in printed
    assert str(output / "model") in printed
    line = printed[printed.index("import timm, timm_wsms") :].splitlines()[0]
    names: dict = {}
    exec(line, names)  # the line of Python that loads it
    weights = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in names["model"].state_dict().items())


@pytest.mark.parametrize("part", [".", "baseline"])
def test_the_model_folder_is_whole_and_computes_what_was_measured(result, part):
    output = result[0] / part
    folder = output / "model"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        *("config.json", "model.safetensors", "README.md", "settings.yaml", "metrics.jsonl", "curves.png"),
        *("results.json", "scale.png", "test/tensors.safetensors"),
    }
    assert metrics(folder) == metrics(output)
    assert [row["epoch"] for row in metrics(folder)] == [1, 2]
    assert all(
        {"train_loss", "test_top1", "test_top5", "lr", "images_per_second"} <= row.keys() for row in metrics(folder)
    )
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    tensors = load_file(folder / "test" / "tensors.safetensors")
    config = timm.data.resolve_data_config(model=model)
    test = load_splits(DataSettings(test_limit=21), seed=0)[1]
    pixels = torch.from_numpy(test.pixels).permute(0, 3, 1, 2) / 255
    images = (pixels - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    with torch.no_grad():
        logits = model(images)
    torch.testing.assert_close(tensors["input"], images[:2])
    torch.testing.assert_close(tensors["logits"], logits[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["features"], model.forward_features(images[:2]), rtol=1e-4, atol=1e-5)
    for size, accuracy in metrics(folder)[-1]["by_size"].items():
        shown = torch.from_numpy(test.object_sizes == int(size))
        assert accuracy == pytest.approx(
            (logits.argmax(1) == torch.from_numpy(test.labels))[shown].float().mean().item() * 100
        )
    for digit, line in enumerate((output / "per_class.csv").read_text().splitlines()[1:]):
        shown = logits.argmax(1)[torch.from_numpy(test.labels) == digit]
        assert line.split(",")[1] == str(len(shown))
        assert not len(shown) or float(line.split(",")[2]) == pytest.approx(
            (shown == digit).float().mean().item() * 100
        )
    assert (output / "confusion.png").read_bytes().startswith(b"\x89PNG")
    right = (logits.argmax(1) == torch.from_numpy(test.labels)).float().mean().item() * 100
    assert metrics(folder)[-1]["test_top1"] == pytest.approx(right)  # of float32, though training was in bf16
    assert f"value: {round(right, 2)}" in (folder / "README.md").read_text()


def test_a_run_leaves_no_pickle_and_the_settings_it_ran_with(result):
    output = result[0]
    suffixes = {path.suffix for path in output.rglob("*") if path.is_file()}
    assert suffixes == {".yaml", ".jsonl", ".safetensors", ".json", ".md", ".png", ".csv"}
    saved = yaml.safe_load((output / "settings.yaml").read_text())
    assert (saved["baseline"], saved["batch_size"], saved["precision"]) == ("resnet20_cifar", 16, "bf16")
    baseline = yaml.safe_load((output / "baseline" / "settings.yaml").read_text())
    assert (baseline["model"], baseline["baseline"]) == ("resnet20_cifar", None)
    assert str(output) not in (output / "model" / "settings.yaml").read_text()


# --- training


def bare_loop(steps: int, updates: int, epochs: int, lr: float, bf16: bool) -> tuple[dict, dict]:
    """Two nested loops in plain PyTorch: momentum SGD, cosine, clipping, label smoothing, an average by hand."""
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=10)
    average = copy.deepcopy(model.state_dict())
    settings = DataSettings(augmentation="pad_crop_flip", train_limit=40)
    split = load_splits(settings, seed=0)[0]
    config = timm.data.resolve_data_config(model=model)
    loader = make_loader(split, settings, config, batch_size=16 // steps, train=True, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
    for number in range(1, epochs + 1):
        loader.set_epoch(number)
        batches = iter(loader)
        for update in range(updates):
            done = (number - 1) * updates + update
            optimizer.param_groups[0]["lr"] = lr * (1 + np.cos(np.pi * done / (epochs * updates))) / 2
            optimizer.zero_grad()
            for _ in range(steps):
                _, images, labels = next(batches)
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    logits = model(images)
                (F.cross_entropy(logits.float(), labels, label_smoothing=0.1) / steps).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            for name, value in model.state_dict().items():
                average[name] = 0.9 * average[name] + 0.1 * value if value.is_floating_point() else value.clone()
    return model.state_dict(), average


@pytest.mark.parametrize(("precision", "compiled"), [("no", False), ("no", True), ("bf16", False)])
def test_the_weights_are_those_of_a_bare_loop(tmp_path, monkeypatch, precision, compiled):
    # The graph is captured but not turned into C++, which would take minutes.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    train_accelerate.main(
        [
            *("--model", "resnet20_cifar", "--output", str(tmp_path / "run"), *FEW, "--epochs", "2"),
            *("--data.augmentation", "pad_crop_flip", "--schedule.name", "cosine", "--optimizer.name", "momentum"),
            *("--optimizer.weight_decay", "0.01", "--grad_accumulation", "2", "--clip_grad", "0.5"),
            *("--label_smoothing", "0.1", "--ema_decay", "0.9", "--compile", str(compiled).lower()),
            *("--precision", precision),
        ]
    )
    model, average = bare_loop(
        steps=2, updates=2, epochs=2, lr=0.05, bf16=precision == "bf16"
    )  # 5 micro batches of 8: the fifth is left out
    newest = checkpoint.newest(tmp_path / "run")
    for expected, path in ((model, newest / "model.safetensors"), (average, tmp_path / "run/model/model.safetensors")):
        got = load_file(path)
        assert got.keys() == expected.keys()
        for name in got:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_final_accuracy_is_measured_in_float32(tmp_path, monkeypatch):
    predict, measured = train_accelerate.evaluation.predict, []
    monkeypatch.setattr(
        train_accelerate.evaluation,
        "predict",
        lambda model, *rest, **kw: measured.append(model) or predict(model, *rest, **kw),
    )
    arguments = ["--model", "resnet20_cifar", *FEW, "--epochs", "2", "--precision", "bf16"]
    train_accelerate.main([*arguments, "--output", str(tmp_path / "run")])
    images = torch.randn(2, 3, 32, 32)
    plain = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        exact = plain(images)
        with torch.autocast("cpu", torch.bfloat16):
            during, final = (model.eval()(images) for model in measured)
    assert torch.equal(final, exact)
    assert not torch.equal(during, exact)  # in the precision of the training, which is faster


def test_weight_decay_can_leave_out_norms_and_biases():
    model = timm.create_model("resnet20_cifar", num_classes=10)
    one = train_accelerate.build_optimizer(model, Settings("a"))
    assert [(len(group["params"]), group["weight_decay"]) for group in one.param_groups] == [
        (len(list(model.parameters())), 1e-4)
    ]
    settings = Settings("a")
    settings.optimizer.decay_norm_and_bias = False
    decayed = [
        p
        for group in train_accelerate.build_optimizer(model, settings).param_groups
        if group["weight_decay"]
        for p in group["params"]
    ]
    assert {id(p) for p in decayed} == {id(p) for p in model.parameters() if p.ndim > 1}


def test_the_batch_has_to_be_divisible():
    settings = Settings("a", batch_size=24, grad_accumulation=2)
    assert [epoch.micro_batch_size(settings, processes) for processes in (1, 2, 3)] == [12, 6, 4]
    with pytest.raises(UserError, match=r"batch_size 24 .* 5 processes .* multiple of 10"):
        epoch.micro_batch_size(settings, 5)
    with pytest.raises(UserError, match="batch_size"):
        epoch.micro_batch_size(settings, 48)


# --- resuming

RESUMED = [
    *("--model", "wsms_resnet20_cifar", "--model_kwargs.drop_rate", "0.5", *FEW, "--epochs", "4"),
    *("--data.augmentation", "pad_crop_flip", "--schedule.name", "onecycle", "--ema_decay", "0.5"),
]


def interrupt_in(epoch_number: int, monkeypatch) -> None:
    train_epoch = epoch.train_epoch

    def interrupted(*arguments, **keywords):
        if keywords["epoch"] == epoch_number:
            raise KeyboardInterrupt
        return train_epoch(*arguments, **keywords)

    monkeypatch.setattr(learner, "train_epoch", interrupted)


def test_an_interrupted_and_resumed_run_gives_the_same_weights(tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_accelerate.main([*RESUMED, "--output", str(whole)])
    with monkeypatch.context() as patch:
        interrupt_in(3, patch)
        assert faults.run(lambda: train_accelerate.main([*RESUMED, "--output", str(parts), "--resume", "auto"])) == 130
    assert "--resume auto" in capsys.readouterr().err
    assert checkpoint.newest(parts).name == "epoch-0002"  # `auto` with nothing to resume started anew
    torch.manual_seed(99)  # another process has other random numbers
    train_accelerate.main([*RESUMED, "--output", str(parts), "--resume", "auto"])
    assert "resumed after epoch 2" in capsys.readouterr().out
    for path in ("checkpoints/epoch-0004/model", "checkpoints/epoch-0004/optimizer", "model/model"):
        one, other = load_file(whole / f"{path}.safetensors"), load_file(parts / f"{path}.safetensors")
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (path, name)
    assert without_times(whole) == without_times(parts)

    # Once done, there is nothing left to do but the folder; other settings are no resumption.
    train_accelerate.main([*RESUMED, "--output", str(parts), "--resume", "auto"])
    assert without_times(whole) == without_times(parts)
    with pytest.raises(UserError, match=r"lr 0\.05 → 0\.1"):
        train_accelerate.main([*RESUMED, "--output", str(parts), "--resume", "auto", "--lr", "0.1"])
    before = {path: path.read_bytes() for path in parts.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a run"):
        train_accelerate.main([*RESUMED, "--output", str(parts)])
    assert {path: path.read_bytes() for path in parts.rglob("*") if path.is_file()} == before


# --- bad input


def refused(capsys, output: Path, *arguments: str) -> str:
    """The one line that such a command ends with; nothing may have been written."""
    code = faults.run(lambda: train_accelerate.main(["--output", str(output), *FEW, *arguments]))
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
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number:02d}.png")
    return tmp_path / "images"


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


def test_the_accuracy_is_of_the_images_that_could_be_decoded(capsys, tmp_path, images):
    for number, file in enumerate(sorted((images / "test").rglob("*.png"))):
        Image.fromarray(np.zeros((70 + number, 80, 3), np.uint8)).save(file)  # too large to be kept decoded
    file.write_bytes(b"no image")
    kept = ["--data.on_bad_image", "skip", "--data.workers", "0", "--epochs", "1", "--output", str(tmp_path / "run")]
    train_accelerate.main(["--model", "resnet20_cifar", "--data.source", str(images), *FEW, *kept])
    told = capsys.readouterr().out
    assert "1 images of split test left out" in told and "% of 19 test images" in told


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
    assert faults.run(lambda: train_accelerate.main([*settings, *source, *arguments])) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and all(part in line for part in says), line


def test_the_image_folders_result_names_its_classes_but_not_its_place(tmp_path, images):
    output = tmp_path / "run"
    train_accelerate.main(
        [*("--model", "resnet20_cifar", "--data.source", str(images)), *FEW, "--epochs", "1", "--output", str(output)]
    )
    assert json.loads((output / "model" / "config.json").read_text())["label_names"] == ["cat", "dog"]
    for name in ("README.md", "settings.yaml", "config.json"):
        assert str(tmp_path) not in (output / "model" / name).read_text()
    assert not (output / "scale.png").exists()


def test_a_full_disk_is_one_line_and_the_run_can_go_on(tmp_path, monkeypatch, capsys):
    arguments = ["--model", "resnet20_cifar", *FEW, "--epochs", "3", "--output", str(tmp_path), "--resume", "auto"]
    write = Path.write_bytes

    def full(self, data):
        if "epoch-0002" in str(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert faults.run(lambda: train_accelerate.main(arguments)) == 2
    assert "error: the disk is full" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-0001"]
    train_accelerate.main(arguments)
    assert "resumed after epoch 1" in capsys.readouterr().out
    assert len(metrics(tmp_path)) == 3


def test_a_disk_that_cannot_be_written_to_is_one_line_before_the_run_and_in_it(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)  # root may write wherever the disk lets it
        line = refused(capsys, tmp_path / "run", "--model", "resnet20_cifar")
    assert "read-only disk" in line and "choose another --output" in line

    def remounted(self, data):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "write_bytes", remounted)
    arguments = ["--model", "resnet20_cifar", *FEW, "--epochs", "1", "--output", str(tmp_path / "run")]
    assert faults.run(lambda: train_accelerate.main(arguments)) == 2
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


def test_out_of_memory_names_the_settings_that_lower_it(tmp_path, monkeypatch, capsys):
    for fault in (lambda: torch.empty(2**46), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):

        def train_epoch(*_, fault=fault, **__):
            if isinstance(fault, BaseException):
                raise fault
            fault()  # more than the address space has room for

        monkeypatch.setattr(learner, "train_epoch", train_epoch)
        arguments = ["--model", "resnet20_cifar", *FEW, "--output", str(tmp_path), "--resume", "auto"]
        assert faults.run(lambda: train_accelerate.main(arguments)) == 2  # noqa: B023
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
        faults.run(lambda: 1 / 0)  # type: ignore[arg-type,return-value]


# --- as a program, and on two processes


def test_as_a_program_bad_input_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(command("--model", "resnet21", "--output", "x"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no model resnet21; did you mean")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def launch(*arguments: str, cwd: Path, launcher: str) -> subprocess.CompletedProcess:
    """Starts the script by a launcher: `accelerate` (which starts one process only on CPUs) or `torchrun` (two)."""
    start = {
        "accelerate": "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no",
        "torchrun": "torch.distributed.run --nproc_per_node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0",
    }[launcher]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = [sys.executable, "-m", *start.split(), *command(*arguments)[1:]]
    return subprocess.run(run, cwd=cwd, capture_output=True, text=True, env=environment)


def test_two_processes_train_and_evaluate_as_one_does(tmp_path):
    # Without batch normalization, whose statistics are those of each process's own images.
    arguments = [
        *("--model", "test_convnext", "--data.input_size", "[3, 32, 32]", *FEW, "--epochs", "2"),
        *("--data.augmentation", "pad_crop_flip", "--optimizer.name", "adamw", "--lr", "0.001", "--ema_decay", "0.8"),
        *("--freeze", "backbone", "--freeze_epochs", "1"),  # so that what DDP has to exchange changes on the way
    ]
    train_accelerate.main([*arguments, "--output", str(tmp_path / "one")])
    done = launch(
        *arguments, "--grad_accumulation", "2", "--output", str(tmp_path / "two"), cwd=tmp_path, launcher="torchrun"
    )
    assert done.returncode == 0, done.stderr
    assert "2 × cpu" in done.stdout
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5, msg=name)
    for mine, theirs in zip(without_times(tmp_path / "one"), without_times(tmp_path / "two"), strict=True):
        assert mine.pop("by_size", {}) == pytest.approx(theirs.pop("by_size", {}))
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert done.stdout.count("Checkpoint folder") == 1


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_under_a_launcher_ours_is_the_first_line(tmp_path, launcher):
    done = launch("--model", "resnet21", "--output", "x", cwd=tmp_path, launcher=launcher)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("error: there is no model resnet21")
    assert done.stderr.count("error: there is no model") == 1
    assert not (tmp_path / "x").exists()
