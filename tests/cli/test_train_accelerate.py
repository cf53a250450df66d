"""The training script, called as `main([...])` on a few real digits, against independent references."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.nn import functional as F

import train_accelerate
from tests.helpers.machine_runs import PAIR
from tests.helpers.snippets import run_snippet
from tests.helpers.training_runs import FEW, ROOT, metrics, without_times
from timm_wsms import cli_errors, evaluation
from timm_wsms.data import DataSettings, load_splits, make_loader, summary
from timm_wsms.errors import UserError
from timm_wsms.training import checkpoint
from timm_wsms.training.builders import build_optimizer
from timm_wsms.training.run import micro_batch_size
from timm_wsms.training.settings import Settings


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A run with a baseline, in bf16; returns its output folder and what it printed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    output = tmp_path_factory.mktemp("run") / "digits"
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        train_accelerate.main(
            [
                "--recipe",
                recipe,
                *FEW,
                "--precision",
                "bf16",
                "--epochs",
                "2",
                "--output",
                str(output),
                "--eval_every",
                "1",
            ]
        )
    return output, "\n".join(printed)


# --- the result


@pytest.mark.slow
def test_the_end_tells_what_came_out_and_how_to_load_it(result):
    output, printed = result
    table = printed[printed.index("model  ") :].splitlines()
    assert table[0].split()[-14:] == ["8", "px", "12", "px", "16", "px", "20", "px", "24", "px", "28", "px", "32", "px"]
    rows = {line.split()[0]: line for line in table[2:4]}
    assert rows.keys() == {"resnet20_cifar", "wsmean_resnet20_cifar"}
    for name, folder in {"resnet20_cifar": output / "baseline", "wsmean_resnet20_cifar": output}.items():
        measured = [f"{metrics(folder)[-1][top]:.2f}" for top in ("test_top1", "test_top5")]
        assert rows[name].split()[5:7] == measured
        parameters = sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters())
        assert f"{parameters / 1e6:.3f}" in rows[name].split()
    alone = metrics(output)[-1]["backbone"]["test_top1"]
    assert table[4].startswith("stage 1 of wsmean_resnet20_cifar  ") and f" {alone:.2f} " in table[4]
    assert not (output / "model_backbone").exists()  # which would need timm_wsms: plain timm has no resnet20_cifar
    assert (output / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert str(output / "scale.png") in printed
    assert str(output / "model") in printed
    line = printed[printed.index("import timm, timm_wsms") :].splitlines()[0]
    names = run_snippet(line)  # loads it
    weights = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in names["model"].state_dict().items())


@pytest.mark.slow
def test_what_is_found_in_the_data_is_printed_before_training_and_kept(result):
    output, printed = result
    found = json.loads((output / "data.json").read_text())
    expected = summary.lines(found)
    assert expected[0] == "data digits: 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    assert printed.count("\n".join(expected)) == 1  # once for both networks
    assert printed.index(expected[0]) < printed.index("epoch 1")
    card = (output / "model" / "README.md").read_text()
    assert all(f"- {line.strip().removeprefix('data ')}" in card.splitlines() for line in expected)


@pytest.mark.slow
@pytest.mark.parametrize("part", [".", "baseline"])
def test_the_model_folder_is_whole_and_computes_what_was_measured(result, part):
    output = result[0] / part
    folder = output / "model"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        *("config.json", "model.safetensors", "README.md", "settings.yaml", "metrics.jsonl", "curves.png"),
        *("results.json", "data.json", "scale.png", "test/tensors.safetensors"),
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
    noise = torch.randn(2, *config["input_size"], generator=torch.Generator().manual_seed(0))
    assert torch.equal(tensors["input"], noise)  # nobody's pictures
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(tensors["logits"], model(noise), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tensors["features"], model.forward_features(noise), rtol=1e-4, atol=1e-5)
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


@pytest.mark.slow
def test_a_run_leaves_no_pickle_and_the_settings_it_ran_with(result):
    output = result[0]
    suffixes = {path.suffix for path in output.rglob("*") if path.is_file()}
    assert suffixes == {".yaml", ".jsonl", ".safetensors", ".json", ".md", ".png", ".csv", ".lock"}
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


@pytest.mark.parametrize(
    ("precision", "compiled"),
    [
        pytest.param("no", False, marks=pytest.mark.quick),
        pytest.param("no", True, marks=pytest.mark.slow),
        pytest.param("bf16", False, marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "graphs"), [("concat", 3), ("mean", 3)])
def test_compiled_stages_train_to_the_same_weights(tmp_path, monkeypatch, fusion, graphs):
    compile_, modules = torch.compile, []

    def compile_eagerly(call, **options):
        modules.append(call.__self__)
        return compile_(call, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    arguments = ["--model", "wsms_resnet20_cifar", "--model_kwargs.fusion", fusion, *FEW, "--epochs", "2"]
    found = {}
    for compiled in ("true", "false"):
        output = tmp_path / compiled
        train_accelerate.main([*arguments, "--compile", compiled, "--precision", "no", "--output", str(output)])
        metrics = [json.loads(line) for line in (output / "model/metrics.jsonl").read_text().splitlines()]
        found[compiled] = load_file(output / "model/model.safetensors"), metrics[-1]["test_top1"]
    assert len(modules) == graphs  # one per stage, none of the whole network
    for name, expected in found["false"][0].items():
        torch.testing.assert_close(found["true"][0][name], expected, rtol=1e-4, atol=1e-6, msg=name)
    assert found["true"][1] == found["false"][1]


@pytest.mark.slow
def test_the_final_accuracy_is_measured_in_float32(tmp_path, monkeypatch):
    predict, measured = evaluation.predict, []
    monkeypatch.setattr(
        evaluation,
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
    one = build_optimizer(model, Settings("a"))
    assert [(len(group["params"]), group["weight_decay"]) for group in one.param_groups] == [
        (len(list(model.parameters())), 1e-4)
    ]
    settings = Settings("a")
    settings.optimizer.decay_norm_and_bias = False
    decayed = [
        p for group in build_optimizer(model, settings).param_groups if group["weight_decay"] for p in group["params"]
    ]
    assert {id(p) for p in decayed} == {id(p) for p in model.parameters() if p.ndim > 1}


def test_the_batch_has_to_be_divisible():
    settings = Settings("a", batch_size=24, grad_accumulation=2)
    assert [micro_batch_size(settings, processes) for processes in (1, 2, 3)] == [12, 6, 4]
    with pytest.raises(UserError, match=r"batch_size 24 .* 5 processes .* multiple of 10"):
        micro_batch_size(settings, 5)
    with pytest.raises(UserError, match="batch_size"):
        micro_batch_size(settings, 48)


# --- resuming

RESUMED = [
    *("--model", "wsms_resnet20_cifar", "--model_kwargs.drop_rate", "0.5", *FEW, "--epochs", "4"),
    *("--data.augmentation", "pad_crop_flip", "--schedule.name", "onecycle", "--ema_decay", "0.5"),
]


def interrupt_in(epoch_number: int, monkeypatch) -> None:
    train_epoch = train_accelerate.train_epoch

    def interrupted(trainer, state, checkpoints):
        if state.epoch == epoch_number:
            raise KeyboardInterrupt
        return train_epoch(trainer, state, checkpoints)

    monkeypatch.setattr(train_accelerate, "train_epoch", interrupted)


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_gives_the_same_weights(tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_accelerate.main([*RESUMED, "--output", str(whole)])
    with monkeypatch.context() as patch:
        interrupt_in(3, patch)
        assert (
            cli_errors.run(lambda: train_accelerate.main([*RESUMED, "--output", str(parts), "--resume", "auto"])) == 130
        )
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


# --- on two processes


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_does(launchers, tmp_path):
    # Without batch normalization, whose statistics are those of each process's own images.
    arguments = [
        *("--model", "test_convnext", "--data.input_size", "[3, 32, 32]", *FEW, "--epochs", "2"),
        *("--data.augmentation", "pad_crop_flip", "--optimizer.name", "adamw", "--lr", "0.001", "--ema_decay", "0.8"),
        *("--freeze", "backbone", "--freeze_epochs", "1"),  # so that what DDP has to exchange changes on the way
    ]
    train_accelerate.main([*arguments, "--output", str(tmp_path / "one")])
    arguments += ["--grad_accumulation", "2", "--output", str(tmp_path / "two")]
    code, text = launchers.launched(tmp_path / "log", PAIR, *arguments)
    assert code == 0, text
    assert "2 × cpu" in text
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5, msg=name)
    for mine, theirs in zip(without_times(tmp_path / "one"), without_times(tmp_path / "two"), strict=True):
        assert mine.pop("by_size", {}) == pytest.approx(theirs.pop("by_size", {}))
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert text.count("Checkpoint folder") == 1
