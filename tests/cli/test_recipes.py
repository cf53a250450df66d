"""Recipes: each is what the paper says, and each starts."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

import timm_wsms  # noqa: F401
import train_accelerate
from tests.helpers.paper import CIFAR
from tests.helpers.paths import ROOT
from timm_wsms.data import data_config, load_splits, make_loader, train_transform
from timm_wsms.training import checkpoint
from timm_wsms.training.builders import build_optimizer
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings, parse, plan

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in RECIPES]


def settings_of(name: str, *arguments: str) -> Settings:
    return parse(["--recipe", str(ROOT / "recipes" / f"{name}.yaml"), *arguments])


def test_there_is_a_recipe_for_each_result():
    depths = {f"imagenet_resnet{depth}" for depth in (50, 101, 152)}
    cifar = {f"cifar{classes}_{network}" for classes in (10, 100) for network in ("resnet110", "densenet100_k24")}
    others = {"imagenet_resnet50_modern", "imagenet_finetune", "finetune_folder", "mnist_scale"}
    assert {"quickstart", "cifar10_resnet20_short", "cifar10_resnet20_sizes", *cifar, *depths, *others} == set(NAMES)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_the_header_says_how_to_launch_it_and_what_to_expect(path):
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\nmodel:")]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"#   accelerate launch train_accelerate.py --recipe recipes/{path.name}" in header
    assert re.search(r"^# Expected: .*\S", header, re.MULTILINE)
    settings = settings_of(path.stem)
    assert settings.output == f"outputs/{path.stem}"
    hub, own = ("uoft-cs/cifar10", "uoft-cs/cifar100", "ILSVRC/imagenet-1k"), ("images", "mnist_scale")
    assert settings.data.source in ("digits", *hub, *own)
    for path_like in re.findall(r"\S*/\S+", yaml.safe_dump(yaml.safe_load(text))):
        assert path_like in (settings.data.source, settings.output)  # no local folder


def test_the_recipe_for_sizes_is_the_form_that_was_measured():
    from benchmarks.object_size.from_scratch import FORMS

    (form,) = (form for form in FORMS if form.name == "mean 1 .5 each, own statistics")
    measured = settings_of("cifar10_resnet20_short", "--model", form.model, *form.words)
    settings = settings_of("cifar10_resnet20_sizes", "--output", measured.output)
    assert settings == measured and settings.stage_loss == 1


# Of the paper, DESIGN §4: (epochs, batch, lr, timm's optimizer, augmentation, label column, classes, parameters in M)
PAPER = {
    "cifar10_resnet110": (164, 128, 0.1, "momentum", "pad_crop_flip", None, 10, 1.748),
    "cifar100_resnet110": (164, 128, 0.1, "momentum", "pad_crop_flip", "fine_label", 100, 1.759),
    "cifar10_densenet100_k24": (300, 32, 0.1, "sgd", "pad_crop_flip", None, 10, 27.953),
    "cifar100_densenet100_k24": (300, 32, 0.1, "sgd", "pad_crop_flip", "fine_label", 100, 27.965),
    "imagenet_resnet50": (90, 256, 0.1, "sgd", "timm", None, 1000, 32.94),
    "imagenet_resnet101": (90, 256, 0.1, "sgd", "timm", None, 1000, 51.99),
    "imagenet_resnet152": (90, 256, 0.1, "sgd", "timm", None, 1000, 67.68),
}


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.slow
def test_the_papers_settings_and_network(name):
    epochs, batch_size, lr, optimizer, augmentation, label_column, classes, parameters = PAPER[name]
    settings = settings_of(name)
    assert (settings.epochs, settings.batch_size, settings.lr) == (epochs, batch_size, lr)
    assert settings.data.augmentation == augmentation
    assert settings.data.label_column == label_column
    assert settings.schedule.name == "step"  # its learning rates: test_schedule.py
    with torch.device("meta"):
        model = timm.create_model(settings.model, num_classes=classes, **settings.model_kwargs)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.0051)
    assert model.pretrained_cfg["architecture"].startswith("wsms_")
    assert settings.optimizer.name == optimizer
    (group,) = build_optimizer(model, settings).param_groups  # one: all parameters decay
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, optimizer == "sgd")
    assert settings.ema_decay is None
    assert settings.clip_grad is None
    assert settings.label_smoothing == 0


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith("cifar")])
@pytest.mark.slow
def test_the_header_says_how_to_train_the_tables_other_rows(name):
    header = next(path for path in RECIPES if path.stem == name).read_text(encoding="utf-8")
    added = re.findall(r"^#   \d+\.\d+ %: add (.*)$", header, re.MULTILINE)
    found = set()
    for settings in (settings_of(name, *line.split()) for line in ["", *added]):
        default = "" if settings.model.startswith(("densenet", "resnet")) else "conv1x1"
        found.add((settings.model, settings.model_kwargs.get("integration", default)))
    kind = "densenet" if "densenet" in name else "resnet"
    assert found == {(row.name, row.integration) for row in CIFAR if re.search(rf"(^|_){kind}", row.name)}
    assert len(found) == 1 + len(added)


def test_the_modern_recipe_is_procedure_a2():
    settings = settings_of("imagenet_resnet50_modern")  # arXiv:2110.00476, Table 2
    assert (settings.epochs, settings.batch_size, settings.lr) == (300, 2048, 5e-3)
    assert (settings.loss, settings.bce_threshold, settings.label_smoothing) == ("bce", 0.2, 0)
    assert (settings.mixup, settings.cutmix, settings.model_kwargs) == (0.1, 1.0, {"drop_path_rate": 0.05})
    model = timm.create_model(settings.model, num_classes=2, **settings.model_kwargs)
    optimizer = build_optimizer(model, settings)
    assert type(optimizer).__name__ == "Lamb"
    decays = {p.ndim > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {True: 0.02, False: 0}
    schedule = Schedule(optimizer, settings, 625)
    assert [schedule.set(epoch * 625) for epoch in (0, 5)] == pytest.approx(
        [1e-4, 1e-6 + (5e-3 - 1e-6) * (1 + np.cos(np.pi * 5 / 300)) / 2]
    )
    steps = str(train_transform(data_config(model, settings.data), settings.data))
    assert "RandAugment(n=2" in steps
    assert "ColorJitter" not in steps


@pytest.mark.parametrize("name, head_init_scale", [("imagenet_finetune", None), ("finetune_folder", 0.01)])
def test_fine_tuning_trains_the_recommended_form_from_timms_weights(name, head_init_scale):
    settings = settings_of(name)
    assert (settings.model, settings.model_kwargs) == ("wsmean_resnet50.a1_in1k", {"pretrained": True})
    assert timm.get_pretrained_cfg(settings.model).hf_hub_id == "timm/resnet50.a1_in1k"
    assert (settings.stage_loss, settings.head_init_scale, settings.freeze) == (1, head_init_scale, "none")
    assert settings.data.scale_jitter == (0.5, 2)


def test_a_folder_is_all_that_its_recipe_needs():
    settings = settings_of("finetune_folder", "--model", "wsmean_convnext_tiny", "--model_kwargs.drop_path_rate", "0.1")
    baseline, own = plan(settings)
    arguments = {"pretrained": True, "drop_path_rate": 0.1}
    assert (baseline.model, baseline.model_kwargs, baseline.stage_loss) == ("convnext_tiny", arguments, 0)
    assert (own.model, own.model_kwargs, own.stage_loss) == ("wsmean_convnext_tiny", arguments, 1)
    assert settings.data.holdout == "auto"
    assert len(settings.eval_object_sizes) == 7 and 1 in settings.eval_object_sizes
    assert plan(settings_of("finetune_folder", "--baseline", "null"))[0].model == settings_of("finetune_folder").model


def test_imagenet_is_seen_as_in_fb_resnet_torch(data):
    settings = settings_of("imagenet_resnet50", "--data.source", str(data["imagenet-1k"]), "--data.workers", "0")
    assert (settings.data.train_split, settings.data.test_split) == ("train", "validation")
    model = timm.create_model(settings.model, num_classes=2)
    config = data_config(model, settings.data)
    assert (config["input_size"], config["crop_pct"], config["crop_mode"]) == ((3, 224, 224), 0.875, "center")
    test = load_splits(settings.data, seed=0)[1]
    seen = next(iter(make_loader(test, settings.data, config, batch_size=1, train=False))).images[0]
    image = test.image(0)  # 300 × 260 pixels
    small = image.resize((round(256 * 300 / 260), 256), getattr(Image.Resampling, config["interpolation"].upper()))
    left, top = (small.width - 224) / 2, 16
    crop = np.asarray(small.crop((round(left), top, round(left) + 224, top + 224)), dtype=np.float32) / 255
    expected = (torch.from_numpy(crop).permute(2, 0, 1) - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(
        config["std"]
    ).view(3, 1, 1)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)
    steps = str(train_transform(config, settings.data))
    assert "scale=(0.08, 1.0), ratio=(0.75, 1.3333)" in steps
    assert "RandomHorizontalFlip(p=0.5)" in steps
    assert "ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=None)" in steps


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """A few images of noise in the form of each Hub source: parquet files with its columns, splits and classes."""
    rng = np.random.default_rng(0)

    def write(name: str, labels: dict[str, int], size: tuple[int, int], test_split: str, image_column: str) -> Path:
        folder = tmp_path_factory.mktemp("data") / name
        for split in ("train", test_split):
            columns = {
                image_column: [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(6)]
            }
            features = {image_column: datasets.Image()}
            for column, classes in labels.items():
                columns[column] = list(range(6)) if classes >= 6 else [0, 1] * 3
                features[column] = datasets.ClassLabel(num_classes=classes)
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            (folder / "data").mkdir(parents=True, exist_ok=True)
            table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return folder

    return {
        "cifar10": write("cifar10", {"label": 10}, (32, 32), "test", "img"),
        "cifar100": write("cifar100", {"fine_label": 100, "coarse_label": 20}, (32, 32), "test", "img"),
        "imagenet-1k": write("imagenet-1k", {"label": 2}, (260, 300), "validation", "image"),
        "images": write("images", {"label": 2}, (260, 300), "test", "image"),
        "mnist_scale": write("mnist_scale", {"label": 10}, (28, 28), "test", "image"),
    }


# Each is like another one but for the network's size or the classes: that one runs to its end, these take two steps.
TWINS = ("cifar100_densenet100_k24", "cifar100_resnet110", "imagenet_resnet101", "imagenet_resnet152")


def few_images(name: str, data: dict[str, Path]) -> list[str]:
    """Settings that start a recipe, for one epoch of few images."""
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = settings_of(name)
    source = settings.data.source
    small = ["--data.source", str(data[source.split("/")[-1]])] if source != "digits" else []
    small += ["--data.train_limit", "4", "--data.test_limit", "2", "--batch_size", "2", "--epochs", "1"]
    if source.startswith("ILSVRC") or source == "images":
        small += ["--data.input_size", "[3, 64, 64]", "--data.workers", "0"]
    small += ["--schedule.warmup_epochs", "0"] if settings.schedule.name == "cosine" else []
    small += ["--model_kwargs.pretrained", "false"] if "pretrained" in settings.model_kwargs else []
    if settings.precision == "bf16" and "resnet50" in settings.model:  # nine times slower on a CPU that emulates it
        small += ["--precision", "no"]
    return ["--recipe", str(ROOT / "recipes" / f"{name}.yaml"), *small]


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_it_takes_two_steps(name, data, tmp_path, capsys):
    train_accelerate.main([*few_images(name, data), "--dry-run", "--output", str(tmp_path / "run")])
    assert f"{settings_of(name).model}: peak memory " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.sweep if name in TWINS else []) for name in NAMES]
)
def test_it_starts(name, data, tmp_path):
    train_accelerate.main([*few_images(name, data), "--output", str(tmp_path / "run")])
    newest = checkpoint.newest(tmp_path / "run")
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    assert state["epoch"] == 1
    (row,) = state["extra"]["metrics"]
    assert np.isfinite(row["train_loss"])
    loaded = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    assert loaded.pretrained_cfg["architecture"] == settings_of(name).model.partition(".")[0]
