"""`eval_object_sizes` and `data.holdout: auto`: from a folder without a test split to both models' size curves."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import train_accelerate
from tests.helpers.training_runs import metrics
from timm_wsms.data import DataSettings, data_config, load_splits, make_loader, resolve_holdout
from timm_wsms.errors import UserError
from timm_wsms.evaluation.object_size.curve import area_weights
from timm_wsms.foreign import read_yaml
from timm_wsms.hub import results
from timm_wsms.object_scaling import rescale_object
from timm_wsms.training import report

SIZES = (0.5, 1.0, 2.0)
RUN = (
    *("--model", "wsmean_test_resnet", "--stage_loss", "1", "--baseline", "test_resnet", "--epochs", "2"),
    *("--data.input_size", "[3, 32, 32]", "--data.crop_pct", "1", "--data.workers", "0", "--batch_size", "8"),
    *("--data.scale_border", "edge", "--data.scale_jitter", "[0.5, 1]"),
)


@pytest.fixture
def folder(tmp_path):
    """48 pictures in two classes, no splits: horizontal and vertical stripes in noise."""
    draw = np.random.default_rng(0)
    for number in range(48):
        stripes = np.tile(np.arange(32) // 4 % 2 * 128, (32, 1))
        stripes = stripes if number % 2 else stripes.T
        pixels = (stripes[..., None] + draw.integers(0, 100, (32, 32, 3))).astype(np.uint8)
        path = tmp_path / "images" / ("flat", "tall")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


@pytest.mark.slow
def test_a_run_ends_with_the_size_curve_of_all_models(folder, tmp_path, capsys, monkeypatch):
    output, borders, measure = tmp_path / "run", [], report.predict_sizes

    def noted(model, loader, accelerator, factors, border, **more):
        borders.append(border)  # the predictions may be the same on another
        return measure(model, loader, accelerator, factors, border, **more)

    monkeypatch.setattr(report, "predict_sizes", noted)
    sizes = ("--eval_object_sizes", "[2, 0.5]")  # in any order, and 1 is added
    source = ("--data.source", str(folder), "--data.holdout", "auto")
    train_accelerate.main([*RUN, *source, *sizes, "--output", str(output)])
    printed = capsys.readouterr().out
    assert borders == ["edge"] * 3
    assert "split 'train, 0.2 held out'" in printed

    # The settings say what was done, so that the images can be found again.
    assert read_yaml(output / "settings.yaml")["data"]["holdout"] == 0.2
    settings = DataSettings(str(folder), holdout=0.2, crop_pct=1.0, workers=0)
    test = load_splits(settings, 0)[1]
    assert len(test) == 10
    names = {"test_resnet": "baseline/model", "wsmean_test_resnet": "model"}
    names["stage 1 of wsmean_test_resnet"] = "model_backbone"
    found, top1 = json.loads((output / "object_sizes.json").read_text()), {}
    assert [one["model"] for one in found["models"]] == [*names]
    for one, (name, part) in zip(found["models"], names.items(), strict=True):
        model = timm.create_model(f"local-dir:{output / part}", pretrained=True).eval()
        (batch,) = make_loader(test, settings, data_config(model, settings), batch_size=10, train=False)
        with torch.no_grad():
            right = torch.stack(
                [model(rescale_object(batch.images, size, "edge")).argmax(1) == batch.labels for size in SIZES]
            )
        top1[name] = (100 * right.double().mean(1)).tolist()
        assert one["factors"] == [*SIZES] and one["top1"] == pytest.approx(top1[name])
        assert one["area"] == pytest.approx(area_weights(SIZES) @ np.array(top1[name]))
        assert f"{one['area']:.1f} [" in printed
    last = metrics(output)[-1]
    assert {float(size): value for size, value in last["by_factor"].items()} == pytest.approx(
        dict(zip(SIZES, top1["wsmean_test_resnet"], strict=True))
    )
    assert {float(size): value for size, value in last["backbone"]["by_factor"].items()} == pytest.approx(
        dict(zip(SIZES, top1["stage 1 of wsmean_test_resnet"], strict=True))
    )
    (pair,) = [one for one in found["comparisons"] if (one["first"], one["second"]) == (*names,)[:2]]
    plain, ours = (np.array(top1[name]) for name in (*names,)[:2])
    assert pair["area_difference"] == pytest.approx(area_weights(SIZES) @ (ours - plain))
    assert found["trained_sizes"] == [0.5, 1.0] and "* a size seen in training" in printed
    assert (output / "object_sizes.png").read_bytes().startswith(b"\x89PNG")

    for part, shown in (("model", [*names][:2]), ("model_backbone", [*names])):
        rows = results.read(output / part).rows
        assert [row.model for row in rows] == shown
        for row in rows:
            assert row.by_factor == pytest.approx(dict(zip(SIZES, top1[row.model], strict=True)))
        card = (output / part / "README.md").read_text()
        assert "× 0.5 | × 1 | × 2 |" in card and "](scale.png)" in card
        assert (output / part / "scale.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_baseline_of_the_same_name_is_kept_apart(folder, tmp_path):
    output = tmp_path / "run"
    other = ("--model", "test_resnet", "--stage_loss", "0", "--baseline_kwargs", "{drop_rate: 0.5}", "--epochs", "1")
    source = ("--data.source", str(folder), "--data.holdout", "0.2", "--eval_object_sizes", "[1]")
    train_accelerate.main([*RUN, *other, *source, "--output", str(output)])
    found = json.loads((output / "object_sizes.json").read_text())
    assert [one["model"] for one in found["models"]] == ["test_resnet", "test_resnet (2)"]


def test_holdout_auto_is_for_sources_without_a_test_split(folder, tmp_path):
    assert resolve_holdout(DataSettings(str(folder), holdout="auto")).holdout == 0.2
    train, test = load_splits(DataSettings(str(folder), holdout="auto"), 3)
    same = load_splits(DataSettings(str(folder), holdout=0.2), 3)
    assert [split.source_rows.tolist() for split in (train, test)] == [one.source_rows.tolist() for one in same]

    whole = tmp_path / "split"
    whole.mkdir()
    folder.rename(whole / "train")
    (whole / "valid").symlink_to(tmp_path / "others")
    (tmp_path / "others").mkdir()
    for kind in ("flat", "tall"):
        (tmp_path / "others" / kind).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / "others" / kind / "a.png")
    assert resolve_holdout(DataSettings(str(whole), holdout="auto")).holdout is None
    assert load_splits(DataSettings(str(whole), holdout="auto"), 0)[1].name == "valid"
    with pytest.raises(UserError, match="no split 'mine'"):  # who names a split wants that one
        load_splits(DataSettings(str(whole), holdout="auto", test_split="mine"), 0)
    assert resolve_holdout(DataSettings(holdout="auto")).holdout is None  # the digits have a test split
    assert resolve_holdout(DataSettings(str(whole), holdout=0.1)).holdout == 0.1


def test_sizes_are_checked_before_anything_is_written(tmp_path):
    for wrong in ("[0]", "[1, -2]", "[.nan]", "[.inf]"):
        with pytest.raises(UserError, match="object sizes must be positive factors"):
            train_accelerate.main(
                ["--model", "test_resnet", "--eval_object_sizes", wrong, "--output", str(tmp_path / "run")]
            )
    assert not (tmp_path / "run").exists()
