"""`python -m timm_wsms.evaluate` on small folders, against the run that trained them and against naive loops."""

import dataclasses
import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file

import train_accelerate
from tests.helpers.machine_runs import PAIR
from tests.helpers.paths import ROOT
from timm_wsms import cli_errors, evaluate
from timm_wsms.data import sources
from timm_wsms.evaluation.options import REMEDIES, AccuracyOptions, ScaleOptions

pytestmark = pytest.mark.slow  # trains a network to evaluate

LIMIT = 49
FIRST = f"test[:{LIMIT}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The output of a training run with seed 1 on a few digits."""
    AcceleratorState._reset_state(reset_partial_state=True)
    output = tmp_path_factory.mktemp("run") / "digits"
    few = ["--data.train_limit", "256", "--data.test_split", FIRST, "--batch_size", "16", "--lr", "0.02"]
    train_accelerate.main(
        [
            "--model",
            "wsms_resnet20_cifar",
            *few,
            "--epochs",
            "8",
            "--eval_every",
            "8",
            "--checkpoint_every",
            "8",
            "--seed",
            "1",
            "--output",
            str(output),
        ]
    )
    return output


@pytest.fixture
def folder(run, tmp_path):
    """A copy of its model's folder, to be changed."""
    return Path(shutil.copytree(run / "model", tmp_path / "copy"))


def digits(*models: Path) -> list[str]:
    return [*map(str, models), "--data", "digits", "--seed", "1", "--split", FIRST]


def figures(tmp_path: Path, *arguments: str) -> list[dict]:
    evaluate.main([*arguments, "--json", str(tmp_path / "figures.json")])
    return json.loads((tmp_path / "figures.json").read_text())["models"]


def change_config(folder: Path, **pretrained_cfg) -> dict:
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= pretrained_cfg
    (folder / "config.json").write_text(json.dumps(config))
    return config


def test_it_gives_what_the_training_run_measured(run, tmp_path, capsys):
    measured = json.loads((run / "model" / "metrics.jsonl").read_text().splitlines()[-1])
    assert measured["test_top1"] > 20  # it has learned something
    first, second = figures(tmp_path, *digits(run / "model", run / "model"), "--output", str(tmp_path / "out"))
    assert first == second
    assert (first["top1"], first["top5"]) == (measured["test_top1"], measured["test_top5"])
    assert first["by_size"] == measured["by_size"]
    assert (first["images"], first["left_out"]) == (LIMIT, 0)
    (classes,) = (tmp_path / "out").iterdir()
    for name in ("per_class.csv", "confusion.png"):
        assert (classes / name).read_bytes() == (run / name).read_bytes()

    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith(f"{run / 'model'}  "))
    assert [f"{measured[name]:.2f}" for name in ("test_top1", "test_top5")] == row.split()[5:7]
    table = printed[printed.index("class  ") :].splitlines()[2:]
    assert [line.split() for line in table] == [
        [one["name"], str(one["images"]), *[f"{one['top1']:.2f}"] * 2] for one in first["per_class"] if one["images"]
    ]


def test_a_run_leaves_what_it_found_in_the_data(run):
    found = json.loads((run / "data.json").read_text())
    assert json.loads((run / "model" / "data.json").read_text()) == found
    assert found["source"] == "digits" and found["splits"]["train"]["images"] == 256
    assert found["splits"]["test"]["name"] == FIRST and found["splits"]["test"]["images"] == LIMIT


def test_two_processes_give_the_figures_of_one(launchers, run, tmp_path):
    one = figures(tmp_path, *digits(run / "model"))
    words = [*digits(run / "model"), "--json", str(tmp_path / "two.json")]
    code, text = launchers.launched(tmp_path / "log", PAIR, *words, script=Path(evaluate.__file__))
    assert code == 0, text
    assert json.loads((tmp_path / "two.json").read_text())["models"] == one
    assert text.count("accuracy %") == 1


def test_classes_in_another_order_are_matched_by_name(run, folder, tmp_path, capsys):
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = config["label_names"][::-1]
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name in ("head.fc.weight", "head.fc.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors")
    first, second = figures(tmp_path, *digits(run / "model", folder))
    assert {**second, "model": first["model"]} == first
    assert "matched by name" in capsys.readouterr().out


@pytest.fixture
def images(tmp_path):
    """An image folder of two classes, larger than what is kept decoded."""
    rng = np.random.default_rng(0)
    for number in range(12):
        file = tmp_path / "images" / "test" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70 + number, 90, 3), dtype=np.uint8)).save(file)
    return tmp_path / "images"


def test_images_are_prepared_as_timms_validate_does(images, tmp_path):
    torch.manual_seed(3)
    model = timm.create_model("wsms_test_resnet", num_classes=2).eval()
    timm.models.save_for_hf(model, tmp_path / "two", safe_serialization=True)
    change_config(tmp_path / "two", test_input_size=[3, 64, 48], test_crop_pct=0.8, input_size=[3, 32, 32])
    arguments = [str(tmp_path / "two"), "--data", str(images), "--workers", "0", "--batch_size", "5"]
    (found,) = figures(tmp_path, *arguments)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'two'}", pretrained=True)
    config = timm.data.resolve_data_config(model=loaded, use_test_size=True)
    assert config["input_size"] == (3, 64, 48) and config["crop_pct"] == 0.8
    assert found["data_config"] == json.loads(json.dumps(config))

    (overridden,) = figures(tmp_path, *arguments, "--crop_pct", "1.0", "--input_size", "[3, 40, 40]")
    for result, changes in ((found, {}), (overridden, {"crop_pct": 1.0, "input_size": (3, 40, 40)})):
        transform = timm.data.create_transform(**{**config, **changes})
        right = []
        for label, name in enumerate(("cat", "dog")):
            for file in sorted((images / "test" / name).iterdir()):
                with torch.no_grad():
                    right.append(int(model(transform(Image.open(file))[None]).argmax()) == label)
        assert result["top1"] == pytest.approx(100 * np.mean(right))
        assert [one["top1"] for one in result["per_class"]] == pytest.approx(
            [100 * np.mean(r) for r in (right[:6], right[6:])]
        )


def test_an_image_that_cannot_be_decoded_can_be_left_out(images, tmp_path, capsys):
    (images / "test" / "cat" / "00.png").write_bytes(b"no image")
    model = timm.create_model("resnet20_cifar", num_classes=2)
    timm.models.save_for_hf(model, tmp_path / "two", safe_serialization=True)
    arguments = [str(tmp_path / "two"), "--data", str(images), "--workers", "0", "--on_bad_image", "skip"]
    (found,) = figures(tmp_path, *arguments)
    assert (found["images"], found["left_out"]) == (11, 1)
    assert "% of 11 images (1 left out)\n" in capsys.readouterr().out
    assert [one["images"] for one in found["per_class"]] == [5, 6]


def test_a_split_without_the_last_class(run, tmp_path, capsys):
    pixels = list(np.zeros((12, 8, 8, 3), np.uint8))
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": pixels, "label": [0, 1, 2, 8] * 3}, features=columns)
    rows.to_parquet(tmp_path / "numbers" / "test.parquet")
    few = [str(run / "model"), "--data", str(tmp_path / "numbers")]
    (named,) = figures(tmp_path, *few)  # by the names "0" to "8"
    assert "the data has 9 of its 10 classes; they are matched by name" in capsys.readouterr().out
    (found,) = figures(tmp_path, *few, "--num_classes", "10")
    assert [one["images"] for one in found["per_class"]] == [3, 3, 3, 0, 0, 0, 0, 0, 3, 0]
    assert named == found
    capsys.readouterr()
    line = refused(capsys, *few, "--num_classes", "8")
    assert "Row 3 of split 'test' has label 8" in line and "there are 8 classes" in line


def test_lines_are_added_for_every_model(run, tmp_path):
    for _ in range(2):
        (found,) = figures(tmp_path, *digits(run / "model"), "--append", str(tmp_path / "results.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert {key: line[key] for key in ("model", "images", "top1", "top5", "parameters")} == {
            key: found[key] for key in ("model", "images", "top1", "top5", "parameters")
        }
        assert (line["what"], line["data"], line["split"], line["precision"]) == ("accuracy", "digits", FIRST, "no")
        assert line["versions"]["timm"] == timm.__version__ and "per_class" not in line


def test_the_data_is_described_and_a_limit_takes_all_classes(run, images, tmp_path, capsys):
    (images / "test").rename(images / "Val")
    (images / "Val" / "dog" / "notes.txt").write_text("no image")
    model = timm.create_model("resnet20_cifar", num_classes=2)
    timm.models.save_for_hf(model, tmp_path / "two", safe_serialization=True)
    (found,) = figures(tmp_path, str(tmp_path / "two"), "--data", str(images), "--workers", "0", "--limit", "5")
    assert [one["images"] for one in found["per_class"]] == [3, 2]
    printed = capsys.readouterr().out
    for line in (
        "data images: 2 classes (cat, dog)",
        "test: 5 images of split 'Val', 2 to 3 per class; RGB, 90 × 70–74 pixels (width × height)",
        "passed over: 1 files that Pillow does not read (.txt): Val/dog/notes.txt",
        "there is no split 'test'; 'Val' is taken",
    ):
        assert line in printed, printed


def test_a_model_of_imagenet_is_scored_by_name(tmp_path, capsys):
    """On a folder of three of its classes, and on the same images under their ids."""
    for names in (("tench", "English springer", "golf ball"), ("n01440764", "n02102040", "n03445777")):
        for number, name in enumerate(names):
            file = tmp_path / names[0] / "validation" / name / "1.png"
            file.parent.mkdir(parents=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(file)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    model.fc.bias.data[[0, 574]] += 100  # all images are a tench, or a golf ball
    timm.models.save_for_hf(model, tmp_path / "model", safe_serialization=True)
    both = [
        figures(tmp_path, str(tmp_path / "model"), "--data", str(tmp_path / name), "--workers", "0")[0]
        for name in ("tench", "n01440764")
    ]
    assert "the data has 3 of its 1000 classes" in capsys.readouterr().out
    assert both[0]["top1"] == both[1]["top1"] == pytest.approx(100 / 3) and both[0]["top5"] > 60
    assert [one["images"] for one in both[0]["per_class"]][:4] == [1, 1, 1, 0] and len(both[0]["per_class"]) == 1000


def test_many_classes_are_in_the_files_and_the_worst_of_them_in_the_table():
    classes = [{"name": f"n{number}", "images": 10, "top1": float(number)} for number in range(50)]
    table = evaluate.class_table([{"per_class": classes[::-1]}]).splitlines()
    assert [line.split()[0] for line in table[2:22]] == [f"n{number}" for number in range(20)]
    assert table[22].startswith("… and 30 more classes")


def refused(capsys, *arguments: str) -> str:
    """The one line that such a command ends with. It names only options that there are."""
    assert cli_errors.run(lambda: evaluate.main(list(arguments)), REMEDIES) == 2
    printed = capsys.readouterr()
    assert all(line.startswith(("data ", "  ")) for line in printed.out.splitlines())  # what was found in the data
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert lines == printed.err.splitlines()[-1:]
    if "unrecognized" not in lines[0]:  # which quotes what was typed
        assert_own_options(lines[0], AccuracyOptions)
    return lines[0]


def assert_own_options(line: str, kind: type) -> None:
    """That what looks like an option is one of the command's, with the names that are its own and not training's."""
    named = set(re.findall(r"--(\w+)", line))
    assert named <= {field.name for field in dataclasses.fields(kind)}, line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--split", "val"], ["no split 'val'", "set --split among: test, train"]),
        (["--limit", "0"], ["--limit is 0"]),
        (["--limit", "few"], ["limit", "few"]),
        (["--bach_size", "3"], ["bach_size"]),
        (["--batch_size", "0"], ["batch_size is 0"]),
        (["--crop_pct", "2"], ["--crop_pct 2.0"]),
        (["--input_size", "[1, 32, 32]"], ["1×32×32", "3 channels", "--input_size"]),
        (["--mean", "[0.5]"], ["--mean [0.5]", "3 channels"]),
        (["--model_kwargs.stages", "9"], ["makes as many stages, not 9"]),
        (["--device", "xpu"], ["--device xpu", "cpu"]),
        (["--precision", "fp16"], ["precision fp16", "cpu"]),
        (["--data", "no/such/folder"], ["--data 'no/such/folder'", "no such folder"]),
        (["--data", "./data.v2/data.source"], ["--data './data.v2/data.source'", "no such folder"]),
        (["--workers", "-1"], ["--workers is -1"]),
        (["--model_kwargs.num_classes", "5"], ["leave out --model_kwargs.num_classes"]),
    ],
)
def test_bad_options_are_one_line(run, capsys, arguments, says):
    line = refused(capsys, *digits(run / "model"), *arguments)
    assert all(part in line for part in says), line


def test_a_model_that_does_not_fit_is_one_line(run, folder, images, capsys):
    line = refused(capsys, str(folder), "--data", str(images))
    assert "has 10 classes, but the data has 2 (split 'test'" in line
    assert "--num_classes" not in line  # it is refused where the data names its classes
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert f"{folder / 'model.safetensors'} is not a " in refused(capsys, *digits(folder))  # file of safetensors
    (folder / "model.safetensors").unlink()
    assert f"{folder} has no model.safetensors" in refused(capsys, *digits(run / "model", folder))  # before the first
    assert "lie in no class folder" in refused(
        capsys, str(run / "model"), "--data", str(images / "test" / "cat"), "--split", "train"
    )
    for file in images.rglob("*.png"):
        file.write_bytes(b"no image")
    line = refused(capsys, str(run / "model"), "--data", str(images))
    assert "cannot be decoded" in line and "--on_bad_image=skip" in line
    line = refused(capsys, str(run / "model"), "--data", str(images), "--on_bad_image", "skip")
    assert "None of the 12 images" in line


def test_a_place_that_cannot_be_written_to_is_told_first(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    for option, place in (("--json", tmp_path / "file" / "x.json"), ("--output", tmp_path / "file")):
        assert "choose another --json or --output" in refused(capsys, *digits(run / "model"), option, str(place))

    for option in ("--json", "--append"):
        told = refused(capsys, *digits(run / "model"), option, str(tmp_path))
        assert f"{option} {tmp_path} is a folder; name a file" in told
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write wherever the disk lets it
    line = refused(capsys, *digits(run / "model"), "--output", str(tmp_path / "new"))
    assert "nothing can be written to" in line and "choose another --json or --output" in line


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "lower --batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "lower --workers, then run it again"),
        (OSError(errno.ENOSPC, "full", "x.png"), "x.png; free some space, then run it again, or choose another --json"),
        (OSError(errno.EROFS, "read-only", "x.png"), "cannot be written to; choose another --json or --output"),
        (OSError(errno.EACCES, "denied", "x.png"), "x.png may not be read or written by this user; change its"),
    ],
)
def test_faults_are_told_in_the_commands_own_options(run, monkeypatch, capsys, fault, says):
    def predict(*_, **__):
        raise fault

    monkeypatch.setattr(evaluate.evaluation, "predict", predict)
    assert says in refused(capsys, *digits(run / "model"))


def test_the_command_itself_tells_faults_so(run, tmp_path):
    """A file that cannot grow."""
    script = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    script += "; runpy.run_module('timm_wsms.evaluate', None, '__main__')"
    words = [*digits(run / "model"), "--json", str(tmp_path / "figures.json")]
    ended = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
    line = ended.stderr.splitlines()[-1]
    assert ended.returncode == 2 and "choose another --json or --output" in line, ended.stderr
    assert_own_options(line, ScaleOptions)
    assert not (tmp_path / "figures.json").exists()


def test_an_interruption_is_told_by_the_command_itself(run, tmp_path, monkeypatch, capsys):
    """Ctrl-C."""
    words = [*digits(run / "model"), "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["object_size", *words])
    monkeypatch.setattr(sources, "load_digits", lambda *_: signal.default_int_handler(signal.SIGINT, None))
    monkeypatch.delitem(sys.modules, "timm_wsms.object_size", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("timm_wsms.object_size", run_name="__main__")
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 130 and "interrupted; run it again" in line
    assert_own_options(line, ScaleOptions)
    assert not (tmp_path / "figures.json").exists()
