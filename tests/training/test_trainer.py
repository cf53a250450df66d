"""Whole runs with frozen parts, averages, teachers, trackers and rehearsals, against independent references."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

import train_accelerate
from tests.helpers.machine_runs import PAIR
from timm_wsms import evaluation
from timm_wsms.data import DataSettings, data_config, load_splits, make_loader
from timm_wsms.errors import UserError
from timm_wsms.training import checkpoint, report

SMALL = [
    *("--model", "wsms_resnet20_cifar", "--data.train_limit", "40", "--data.test_limit", "21", "--batch_size", "16"),
    *("--lr", "0.05", "--optimizer.name", "momentum", "--epochs", "2", "--keep_last", "9"),
    *("--eval_every", "9"),
]


def train(output: Path, *arguments: str) -> list[dict]:
    """Runs the script; returns its metrics."""
    train_accelerate.main([*SMALL, *arguments, "--output", str(output)])
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output: Path, epoch: int, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"epoch-{epoch:04d}" / f"{file}.safetensors")


def start(name: str = "wsms_resnet20_cifar", **kwargs):
    """The network as a run begins with it."""
    set_seed(0)
    return timm.create_model(name, num_classes=10, **kwargs)


def batches_of(network, epoch: int):
    split = load_splits(DataSettings(train_limit=40), seed=0)[0]
    settings = DataSettings(train_limit=40)
    loader = make_loader(split, settings, data_config(network, settings), batch_size=16, train=True, seed=0)
    loader.set_epoch(epoch)
    return loader


NEW = ("integration.", "head.")


def test_integration_first_then_all_as_in_a_bare_loop(tmp_path):
    train(tmp_path, "--freeze", "backbone", "--freeze_epochs", "1")
    network = start()
    begun = copy.deepcopy(network.state_dict())
    new = [p for name, p in network.named_parameters() if name.startswith(NEW)]
    old = [p for name, p in network.named_parameters() if not name.startswith(NEW)]
    first, second = (torch.optim.SGD(part, lr=0.05, momentum=0.9, weight_decay=1e-4) for part in (new, old))
    for epoch in (1, 2):
        network.train()
        if epoch == 1:
            network.backbone.eval()
            network.stages.eval()
        for _, images, labels in batches_of(network, epoch):
            network.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            first.step()
            if epoch == 2:
                second.step()
        got = weights(tmp_path, epoch)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=f"{epoch} {name}")
        # Frozen: weights, running statistics and their count, to the last bit; otherwise none of them.
        same = {name for name in got if torch.equal(got[name], begun[name])}
        assert same == ({name for name in got if not name.startswith(NEW)} if epoch == 1 else set())


STAGES = ["--stage_loss", "0.5", "--stage_distill", "0.4", "--stage_distill_temperature", "2"]
STAGES += ["--stage_consistency", "0.3", "--model_kwargs.fusion", "mean", "--model_kwargs.pyramid", "[1, 0.5]"]


def stage_losses(network, images, labels) -> torch.Tensor:
    """The loss of `STAGES`, written out."""
    inputs, parts = (images, F.avg_pool2d(images, 2)), (network.backbone, network.stages["2"].backbone)
    maps = [part.forward_features(x) for part, x in zip(parts, inputs, strict=True)]
    one, other = (part.forward_head(x) for part, x in zip(parts, maps, strict=True))
    large, small = (part.forward_head(x, pre_logits=True) for part, x in zip(parts, maps, strict=True))
    mean = (one + other) / 2
    loss = F.cross_entropy(mean, labels) + 0.5 * (F.cross_entropy(one, labels) + F.cross_entropy(other, labels)) / 2
    q = (mean.detach() / 2).softmax(1)
    for logits in (one, other):
        p = (logits / 2).softmax(1)
        loss = loss + 0.4 * 2**2 / 2 * (q * (q / p).log()).sum(1).mean()
    distance = (small - large.detach()).abs()
    return loss + 0.3 * torch.where(distance < 1, distance**2 / 2, distance - 0.5).mean()


def test_the_losses_of_each_stage_as_in_a_bare_loop_beside_a_plain_baseline(tmp_path):
    # In a second epoch rounding errors grow to 0.5 %.
    arguments = [*STAGES, "--ema_decay", "0.8", "--lr", "0.005", "--epochs", "1"]
    train(tmp_path, *arguments, "--baseline", "resnet20_cifar")
    for name, form, folder in (
        ("wsms_resnet20_cifar", {"fusion": "mean", "pyramid": [1, 0.5]}, tmp_path),
        ("resnet20_cifar", {}, tmp_path / "baseline"),  # trained by the labels' loss as ever
    ):
        network = start(name, **form)
        average = {key: value.clone() for key, value in network.state_dict().items()}
        optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)
        network.train()
        for _, images, labels in batches_of(network, 1):
            optimizer.zero_grad()
            if form:
                stage_losses(network, images, labels).backward()
            else:
                F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            for key, value in network.state_dict().items():
                new = 0.8 * average[key] + 0.2 * value if value.is_floating_point() else value
                average[key] = new.clone()
        for file, expected in (("model", network.state_dict()), ("ema", average)):
            got = weights(folder, 1, file)
            assert got.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-6, msg=f"{file} {key}")


@pytest.mark.slow
def test_a_run_with_the_losses_of_each_stage_is_resumed_bit_for_bit_and_divided_among_processes(launchers, tmp_path):
    # Without batch normalization, whose statistics are those of each process's own images.
    arguments = ["--model", "wsms_test_convnext", "--data.input_size", "[3, 64, 64]", *STAGES, "--ema_decay", "0.8"]
    arguments += ["--optimizer.name", "adamw", "--lr", "0.001", "--checkpoint_every_steps", "1"]
    train(tmp_path / "whole", *arguments)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for name in ("epoch-0002", "epoch-0001-step-000002"):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / name, ignore_errors=True)
    train(tmp_path / "resumed", *arguments, "--resume", "auto")
    code, text = launchers.launched(tmp_path / "log", PAIR, *SMALL, *arguments, "--output", str(tmp_path / "two"))
    assert code == 0, text
    for file in ("model", "ema", "optimizer"):
        one, again, two = (weights(tmp_path / name, 2, file) for name in ("whole", "resumed", "two"))
        assert one.keys() == again.keys() == two.keys()
        assert all(torch.equal(one[key], again[key]) for key in one)
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.slow
def test_a_warm_start_that_trains_the_integration_layer_alone(tmp_path):
    torch.manual_seed(5)
    own = timm.create_model("test_resnet", num_classes=10)
    save_file(own.state_dict(), tmp_path / "backbone.safetensors")
    arguments = ["--model", "wsms_test_resnet", "--data.input_size", "[3, 64, 64]", "--model_kwargs.pretrained", "true"]
    overlay = {"file": f"{tmp_path}/backbone.safetensors", "num_classes": 10}
    arguments += ["--model_kwargs.pretrained_cfg_overlay", json.dumps(overlay), "--freeze", "backbone"]
    train(tmp_path / "run", *arguments)
    got = weights(tmp_path / "run", 2)
    trained = {name for name, value in own.state_dict().items() if not torch.equal(got[f"backbone.{name}"], value)}
    assert trained == {"fc.weight", "fc.bias"}
    assert got["integration.gamma"].abs().max() > 0
    saved = yaml.safe_load((tmp_path / "run" / "model" / "settings.yaml").read_text())
    assert saved["model_kwargs"]["pretrained_cfg_overlay"]["file"] == "backbone.safetensors"  # not where it is


@pytest.mark.slow
def test_the_average_and_the_weights_as_they_are_are_both_measured(tmp_path):
    rows = train(tmp_path, "--ema_decay", "0.8", "--ema_warmup", "true", "--lr", "0.2", "--eval_every", "1")
    network = start()
    average = copy.deepcopy(network.state_dict())
    test = load_splits(DataSettings(test_limit=21), seed=0)[1]
    loader = make_loader(test, DataSettings(), data_config(network, DataSettings()), batch_size=21, train=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4)
    step = 0
    for epoch in (1, 2):
        network.train()
        for _, images, labels in batches_of(network, epoch):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            decay = min(0.8, 1 - (1 + step) ** (-2 / 3))  # timm's warm-up; the first step is copied
            step += 1
            for name, value in network.state_dict().items():
                new = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
                average[name] = new.clone()
        got = weights(tmp_path, epoch, "ema")
        for name, value in average.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=f"{epoch} {name}")
        _, images, labels = next(iter(loader))
        for prefix, of in (("test", "ema"), ("test_raw", "model")):
            model = start().eval()
            model.load_state_dict(weights(tmp_path, epoch, of))
            with torch.no_grad():
                best = model(images).topk(5).indices
            assert rows[epoch - 1][f"{prefix}_top1"] == pytest.approx(
                100 * (best[:, 0] == labels).float().mean().item()
            )
            hits = (best == labels[:, None]).any(1)
            assert rows[epoch - 1][f"{prefix}_top5"] == pytest.approx(100 * hits.float().mean().item())
    published = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(published[name], value) for name, value in weights(tmp_path, 2, "ema").items())


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_but_the_memory(tmp_path):
    random = ["--model_kwargs.drop_rate", "0.3"]
    train(tmp_path / "plain", *random)
    train(tmp_path / "less", *random, "--grad_checkpointing", "true")
    for file in ("model", "optimizer"):
        one, other = (weights(tmp_path / name, 2, file) for name in ("plain", "less"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_with_a_teacher_keeps_only_the_student(tmp_path):
    teacher = start("resnet20_cifar")
    timm.models.save_for_hf(teacher, tmp_path / "teacher", safe_serialization=True)
    distill = ["--distill.teacher", f"local-dir:{tmp_path / 'teacher'}", "--distill.alpha", "0.7"]
    train(tmp_path / "run", *distill, "--distill.temperature", "3", "--epochs", "1")
    teacher.eval()
    network = start()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for _, images, labels in batches_of(network, 1):
        with torch.no_grad():
            q = (teacher(images) / 3).softmax(1)
        logits = network.train()(images)
        divergence = (q * (q.log() - (logits / 3).log_softmax(1))).sum(1).mean() * 9
        optimizer.zero_grad()
        (0.3 * F.cross_entropy(logits, labels) + 0.7 * divergence).backward()
        optimizer.step()
    got = weights(tmp_path / "run", 1)
    assert got.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert (
        yaml.safe_load((tmp_path / "run/model/settings.yaml").read_text())["distill"]["teacher"] == "local-dir:teacher"
    )


@pytest.mark.slow
def test_early_stop_ends_the_run_in_the_same_epoch_when_resumed(tmp_path, monkeypatch, capsys):
    stopping = ["--epochs", "9", "--lr", "1e-9", "--early_stop", "2", "--checkpoint_every", "4", "--keep_best", "0"]
    stopping += ["--eval_every", "1"]
    rows = train(tmp_path, *stopping)
    accuracies = [row["test_top1"] for row in rows]
    last = accuracies.index(max(accuracies)) + 1 + 2
    assert len(rows) == last < 9  # with such a learning rate only the running statistics change
    assert "no better accuracy in 2 epochs" in capsys.readouterr().out
    assert checkpoint.newest(tmp_path).name == f"epoch-{last:04d}"
    again = train(tmp_path, *stopping, "--resume", "auto")
    assert again == rows
    with pytest.raises(UserError, match=r"eval_every 1 → 2"):  # it would stop elsewhere
        train(tmp_path, *stopping, "--resume", "auto", "--eval_every", "2")


@pytest.mark.slow
def test_trackers_get_every_epochs_numbers(tmp_path):
    rows = train(tmp_path, "--trackers", "[tensorboard]", "--ema_decay", "0.5", "--eval_every", "1")
    (events,) = (tmp_path / "timm-wsms").glob("events*")
    logged = EventAccumulator(str(events))
    logged.Reload()
    for name in ("train_loss", "test_top1", "test_raw_top1", "images_per_second", "lr"):
        last = {event.step: event.value for event in logged.Scalars(name)}
        assert last == pytest.approx({row["epoch"]: row[name] for row in rows})


@pytest.mark.slow
def test_an_epoch_whose_evaluation_was_interrupted_is_told_of_after_the_resume(tmp_path, monkeypatch, capsys):
    arguments = ["--trackers", "[tensorboard]", "--eval_every", "1", "--resume", "auto"]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "predict", interrupted)
        train(tmp_path, *arguments)
    written, write_metrics = [], report.write_metrics
    monkeypatch.setattr(
        report, "write_metrics", lambda *a: written.append(copy.deepcopy(a[1].metrics)) or write_metrics(*a)
    )
    rows = train(tmp_path, *arguments)
    assert re.search(r"resumed after epoch 1.*\nepoch 1/2 .* test \d", capsys.readouterr().out)
    assert written[0] == rows[:1]  # before the next epoch has come to its end
    assert "test_top1" in rows[0]
    logged = EventAccumulator(str(tmp_path / "timm-wsms"))
    logged.Reload()
    assert {event.step for event in logged.Scalars("test_top1")} == {1, 2}


@pytest.mark.slow
def test_a_dry_run_tells_memory_and_hours_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    updates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *rest: updates.append(1) or step(self, *rest))
    monkeypatch.setattr(evaluation, "predict", None)
    train_accelerate.main(
        [*SMALL, "--dry-run", "--baseline", "resnet20_cifar", "--epochs", "7", "--output", "run", "--ema_decay", "0.9"]
    )
    *_, first, second = capsys.readouterr().out.splitlines()
    for line, name in ((first, "resnet20_cifar"), (second, "wsms_resnet20_cifar")):
        assert line.startswith(f"{name}: peak memory ")
        assert "GiB per process since its start; about" in line and "seconds per step" in line
    assert len(updates) == 4  # two each
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dry_run_with_several_sizes_takes_its_steps_at_the_largest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sides = []
    forward = timm.models.ResNet.forward
    record = lambda self, x: (self.training and sides.append(x.shape[-1])) or forward(self, x)  # noqa: E731
    monkeypatch.setattr(timm.models.ResNet, "forward", record)
    arguments = [*SMALL, "--model", "test_resnet", "--dry-run", "--output", "run", "--data.train_sizes", "[24, 40, 32]"]
    train_accelerate.main(arguments)
    assert sides == [40, 40]
    assert "from a single one, at the largest of data.train_sizes (40 pixels)" in capsys.readouterr().out
