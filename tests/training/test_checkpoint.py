"""Checkpoints and model folders: round trips by value, and what happens when writing fails half-way."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from torch import nn

import timm_wsms  # noqa: F401
from timm_wsms.cli_errors import explain
from timm_wsms.errors import UserError
from timm_wsms.files import atomic_folder
from timm_wsms.training import checkpoint
from timm_wsms.training.builders import build_optimizer
from timm_wsms.training.checkpoint import Position
from timm_wsms.training.checkpoint_folder import reference_tensors, save_model_folder
from timm_wsms.training.optimizer_state import flatten_state, unflatten_state
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import OptimizerSettings, ScheduleSettings, Settings

CLASSES = ["cat", "dog", "owl"]


def small(name: str = "wsms_resnet20_cifar", seed: int = 0, **kwargs) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=3, **kwargs)


def tiny(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3))


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """Steps with images that depend on the step's number alone."""
    model.train()
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(4, 3, 16, 16, generator=generator)
        torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def full_disk(monkeypatch, fails_at: str) -> None:
    """Lets the disk be full, after half of the data, when a file of this name is written."""
    write = Path.write_bytes

    def write_bytes(self, data):
        if self.name == fails_at:
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # writing to an open file names none
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


# --- checkpoints


@pytest.mark.parametrize("name", ["momentum", "adamw", "muon"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_run_goes_on_as_if_it_had_not_been_interrupted(tmp_path, name, memory_format):
    def start(seed: int):
        model = tiny(seed).to(memory_format=memory_format)
        return model, create_optimizer_v2(model, name, lr=0.01, weight_decay=0.1)

    whole, optimizer = start(seed=0)
    steps(whole, optimizer, range(4))

    first, optimizer = start(seed=0)
    steps(first, optimizer, range(2))
    ema = tiny(seed=5)
    folder = checkpoint.save_run_state(
        tmp_path, Position(7, 3), first, optimizer, ema, {"metrics": [{"epoch": 7, "loss": 0.1}]}
    )

    second, optimizer = start(seed=1)
    other_ema = tiny(seed=6)
    extra = checkpoint.load_run_state(folder, second, optimizer, other_ema)
    assert extra == {"metrics": [{"epoch": 7, "loss": 0.1}]}
    assert_same(ema.state_dict(), other_ema.state_dict())
    for parameter, state in optimizer.state.items():
        for value in state.values():
            assert getattr(value, "shape", None) != parameter.shape or value.stride() == parameter.stride()
    steps(second, optimizer, range(2, 4))
    assert_same(whole.state_dict(), second.state_dict())


def test_settings_that_have_changed_hold_and_the_optimizers_state_goes_on(tmp_path):
    before = Settings("a", lr=0.05, epochs=4, schedule=ScheduleSettings("onecycle"))
    after = dataclasses.replace(before, lr=0.2, optimizer=OptimizerSettings(momentum=0.5, weight_decay=0.3))
    network = tiny(seed=0)
    optimizer = build_optimizer(network, before)
    schedule = Schedule(optimizer, before, updates_per_epoch=2)
    schedule.set(0)
    steps(network, optimizer, range(2))
    folder = checkpoint.save_run_state(tmp_path, Position(1), network, optimizer)

    resumed = tiny(seed=1)
    other = build_optimizer(resumed, after)
    schedule = Schedule(other, after, updates_per_epoch=2)
    checkpoint.load_run_state(folder, resumed, other)
    rate = schedule.set(2)
    assert rate == Schedule(build_optimizer(tiny(seed=2), after), after, updates_per_epoch=2).set(2)
    steps(resumed, other, range(2, 4))
    # The first run goes on by hand.
    optimizer.param_groups[0].update(lr=rate, momentum=0.5, weight_decay=0.3)
    steps(network, optimizer, range(2, 4))
    assert_same(network.state_dict(), resumed.state_dict())


def test_what_an_optimizer_counts_in_its_groups_goes_on(tmp_path):
    """Lookahead goes back towards its slow weights in every 6th step; they are there from the first such step on."""
    whole, first, second = (tiny(seed=0) for _ in range(3))
    optimizer = create_optimizer_v2(whole, "lookahead_momentum", lr=0.1)
    steps(whole, optimizer, range(13))
    optimizer = create_optimizer_v2(first, "lookahead_momentum", lr=0.1)
    steps(first, optimizer, range(8))
    folder = checkpoint.save_run_state(tmp_path, Position(1), first, optimizer)
    optimizer = create_optimizer_v2(second, "lookahead_momentum", lr=0.1)
    checkpoint.load_run_state(folder, second, optimizer)
    steps(second, optimizer, range(8, 13))
    assert_same(whole.state_dict(), second.state_dict())


def saved_at(checkpoints: Path, *positions: Position) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Writes checkpoints whose models have taken so many steps as there were checkpoints before."""
    model = tiny(seed=0)
    optimizer = create_optimizer_v2(model, "momentum", lr=0.1)
    for number, position in enumerate(positions):
        steps(model, optimizer, range(number, number + 1))
        checkpoint.save_run_state(checkpoints, position, model, optimizer, extra={"number": number})
    return model, optimizer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_safetensors_and_json_with_the_sum_of_every_file(tmp_path):
    saved_at(tmp_path / "checkpoints", Position(1))
    folder = checkpoint.newest(tmp_path)
    assert names(folder) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    sums = json.loads((folder / "manifest.json").read_text())
    assert sums.keys() == set(names(folder)) - {"manifest.json"}
    for name, digest in sums.items():
        assert subprocess.check_output(["sha256sum", folder / name], text=True).split()[0] == digest
    assert checkpoint.newest(tmp_path / "elsewhere") is None


def test_the_newest_is_the_farthest_and_the_best_are_kept_too(tmp_path):
    order = [(1, 0), (2, 0), (2, 900), (2, 1000), (9999, 0), (10000, 0)]
    saved_at(tmp_path / "checkpoints", *(Position(*each) for each in reversed(order)))
    assert [Position.parse(path.name) for path in checkpoint.all_of(tmp_path)] == order  # by number, not by name
    (tmp_path / "checkpoints" / ".epoch-0003.new").mkdir()  # left by a killed process
    (tmp_path / "checkpoints" / ".epoch-0000.gone").mkdir()
    (tmp_path / "checkpoints" / "epoch-0007.mine").mkdir()  # somebody's
    checkpoint.prune(tmp_path / "checkpoints", keep=2, also=[Position(2), Position(5)])
    assert names(tmp_path / "checkpoints") == ["epoch-0002", "epoch-0007.mine", "epoch-10000", "epoch-9999"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EINTR])
def test_a_failing_disk_is_one_line(number):
    line = explain(OSError(number, os.strerror(number), "/mnt/run/model.safetensors"))
    assert line.startswith(f"/mnt/run/model.safetensors cannot be read or written ({os.strerror(number)}): check the")
    assert "continue with --resume auto" in line


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_full_disk_leaves_the_previous_checkpoints_whole(tmp_path, monkeypatch, name):
    model = small()
    optimizer = create_optimizer_v2(model, "momentum", lr=0.1)
    steps(model, optimizer, range(1))
    for epoch in (1, 2):
        checkpoint.save_run_state(tmp_path / "checkpoints", Position(epoch), model, optimizer)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if name == "state.json":
        monkeypatch.setattr(
            Path, "write_text", lambda self, *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
        )
    else:
        full_disk(monkeypatch, name)
    with pytest.raises(OSError) as error:
        checkpoint.save_run_state(tmp_path / "checkpoints", Position(3), model, optimizer)
    assert re.search(r"disk is full while writing .*epoch-0003\b.*; .*--resume auto", explain(error.value) or "")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch-0001", "epoch-0002"]


def test_what_a_killed_process_left_half_written_is_no_checkpoint(tmp_path):
    model = small()
    optimizer = create_optimizer_v2(model, "momentum", lr=0.1)
    checkpoint.save_run_state(tmp_path / "checkpoints", Position(1), model, optimizer)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "checkpoints" / "epoch-0002") as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        half = folder
        raise KeyboardInterrupt
    half.mkdir()  # had it been killed outright
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path).name == "epoch-0001"
    checkpoint.save_run_state(tmp_path / "checkpoints", Position(2), model, optimizer)
    assert checkpoint.newest(tmp_path).name == "epoch-0002"
    checkpoint.prune(tmp_path / "checkpoints", keep=2, also=[])
    assert not half.exists()


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "deleted"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, name, damage):
    model, optimizer = saved_at(tmp_path / "checkpoints", Position(1), Position(1, 5))
    folder = tmp_path / "checkpoints" / "epoch-0001-step-000005"
    whole = (folder / name).read_bytes()
    # Everywhere in the file, the last byte among them.
    places = range(0, 8 * len(whole), 8 * len(whole) // 40 - 1) if damage == "flipped" else [0]
    for place in [*places, 8 * len(whole) - 1]:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        content = {"flipped": data, "truncated": whole[:-9], "empty": b"", "deleted": None}[damage]
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{folder.name}/.* is damaged or missing"):
            checkpoint.load_run_state(folder, model, optimizer)
        used, told = checkpoint.newest_whole(tmp_path)
        assert used == tmp_path / "checkpoints" / "epoch-0001"
        (line,) = told
        assert f"{folder / name} is damaged or missing" in line or name == "manifest.json"
        assert not folder.exists()  # out of the way, but not lost
        folder.with_name(f"{folder.name}.damaged").rename(folder)
    (folder / name).write_bytes(whole)
    assert checkpoint.newest_whole(tmp_path) == (folder, [])


def test_only_what_the_last_resume_put_aside_is_kept(tmp_path):
    saved_at(tmp_path / "checkpoints", *(Position(epoch) for epoch in range(1, 6)))
    folder = tmp_path / "checkpoints"
    for epoch in (5, 4):
        (folder / f"epoch-{epoch:04}" / "state.json").unlink()
        assert checkpoint.newest_whole(tmp_path)[0] == folder / f"epoch-{epoch - 1:04}"
        assert [*folder.glob("*.damaged")] == [folder / f"epoch-{epoch:04}.damaged"]
    checkpoint.newest_whole(tmp_path)  # nothing is damaged now, and nothing is removed
    assert names(folder) == ["epoch-0001", "epoch-0002", "epoch-0003", "epoch-0004.damaged"]


def test_without_a_whole_checkpoint_nothing_is_resumed_and_nothing_renamed(tmp_path):
    saved_at(tmp_path / "checkpoints", Position(1), Position(2))
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint is intact: .*epoch-0002/state.json.*epoch-0001/state.json"):
        checkpoint.newest_whole(tmp_path)
    assert names(tmp_path / "checkpoints") == ["epoch-0001", "epoch-0002"]
    assert checkpoint.newest_whole(tmp_path / "elsewhere") == (None, [])


STATES = [
    *("", "[]", "3", "\xff", "{}", "[" * 50_000 + "]" * 50_000),
    *(
        '{"optimizer": null, "extra": {}}',
        '{"optimizer": {"tensor": "none"}, "extra": {}}',
        '{"optimizer": {"dict": [1]}}',
    ),
    *(
        '{"optimizer": {"dict": [["state", {"dict": []}]]}}',
        '{"optimizer": {"dict": [["param_groups", 3]]}, "extra": 3}',
    ),
]


@pytest.mark.parametrize("text", STATES)
def test_a_state_that_is_none_is_refused_though_its_sum_is_right(tmp_path, text):
    """From the fuzzer."""
    model, optimizer = saved_at(tmp_path / "checkpoints", Position(1))
    folder = tmp_path / "checkpoints" / "epoch-0001"
    (folder / "state.json").write_bytes(text.encode("latin-1"))
    sums = json.loads((folder / "manifest.json").read_text())
    sums["state.json"] = hashlib.sha256(text.encode("latin-1")).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match=r"epoch-0001.*; choose another --output"):
        checkpoint.load_run_state(folder, model, optimizer)


def test_another_models_checkpoint_is_refused(tmp_path):
    model, other = small(), small("resnet32_cifar")
    optimizer, others = (create_optimizer_v2(each, "momentum", lr=0.1) for each in (model, other))
    folder = checkpoint.save_run_state(tmp_path, Position(1), model, optimizer)
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load_run_state(folder, other, others)
    with pytest.raises(UserError, match="without ema_decay"):
        checkpoint.load_run_state(folder, model, optimizer, small())
    with pytest.raises(UserError, match="holds the state of SGD, not of AdamW"):
        checkpoint.load_run_state(folder, model, create_optimizer_v2(model, "adamw", lr=0.1))


def test_a_state_of_any_shape_comes_back_by_value_and_type():
    tensor = torch.arange(6.0).view(2, 3)
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "pair": (1, [tensor, None])}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
    }
    tensors: dict[str, torch.Tensor] = {}
    back = unflatten_state(json.loads(json.dumps(flatten_state(tree, tensors))), tensors)
    assert set(tensors) == {"state.0.step", "state.0.pair.1.0"}
    assert torch.equal(back["state"][0].pop("step"), torch.tensor(3.0))
    assert torch.equal(back["state"][0]["pair"][1].pop(0), tensor)
    assert back == {"state": {0: {"pair": (1, [None])}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    with pytest.raises(TypeError, match=r"a\.b is a set"):
        flatten_state({"a": {"b": {1}}}, {})


# --- the model's folder


def test_timm_loads_the_folder_and_computes_the_same(tmp_path):
    model = small(stages=2, integration="conv3x3").to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "momentum", lr=0.1)
    steps(model, optimizer, range(2))  # running statistics and γ that are not the initial ones
    config = {
        **timm.data.resolve_data_config(model=model),
        "input_size": (3, 24, 24),
        "mean": (0.1, 0.2, 0.3),
        "crop_pct": 0.75,
    }
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(9))
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    with atomic_folder(tmp_path / "model") as folder:
        save_model_folder(model, folder, config, CLASSES, images)
    assert model.training  # left as it was
    assert {name: value.stride() for name, value in model.state_dict().items()} == strides

    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert_same(model.state_dict(), loaded.state_dict())
    got = timm.data.resolve_data_config(model=loaded)
    assert {**got, "mean": tuple(got["mean"]), "std": tuple(got["std"])} == config
    assert loaded.pretrained_cfg["label_names"] == CLASSES
    tensors = load_file(tmp_path / "model" / "test" / "tensors.safetensors")
    assert_same(tensors, reference_tensors(loaded, images))
    with torch.no_grad():
        features = loaded.forward_features(images)
        expected = {"input": images, "features": features, "logits": loaded(images)}
        expected["pre_logits"] = loaded.forward_head(features, pre_logits=True)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value)
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt*"))


def test_a_failure_leaves_the_folder_that_was_there(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "config.json").write_text("new")
        raise RuntimeError
    assert (target / "config.json").read_text() == "old"
    with atomic_folder(target) as folder:
        (folder / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    target.rename(tmp_path / ".model.old")  # killed between the two renamings
    with pytest.raises(RuntimeError), atomic_folder(target):
        raise RuntimeError
    assert (target / "config.json").read_text() == "new"


# --- the output folder


def test_an_output_folder_with_a_run_is_refused_unless_resumed(tmp_path):
    for number, name in enumerate(
        ("checkpoints/epoch-0001", "checkpoints/epoch-0001.damaged", "model", "baseline/model")
    ):
        folder = tmp_path / str(number)
        (folder / name).mkdir(parents=True)
        checkpoint.check_output(folder, "auto")
        with pytest.raises(UserError, match=r"already holds a run.*--resume auto.*another --output"):
            checkpoint.check_output(folder, "no")
    # A run that ended before its first checkpoint leaves nothing to resume, and is not in the way.
    (tmp_path / "begun" / "checkpoints" / ".epoch-0001.new").mkdir(parents=True)
    (tmp_path / "begun" / "settings.yaml").touch()
    checkpoint.check_output(tmp_path / "begun", "no")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    checkpoint.check_output(tmp_path / "notes", "no")
    checkpoint.check_output(tmp_path / "not" / "yet", "no")
    assert not (tmp_path / "not").exists()
    with pytest.raises(UserError, match="nothing can be written"):
        checkpoint.check_output(tmp_path / "notes" / "mine.txt" / "run", "no")
