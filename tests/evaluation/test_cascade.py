"""`--cascade`: what it divides, measures and prints, on digits, against loops; and the picture."""

import json

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState

import timm_wsms
from tests.helpers.networks import randomize
from timm_wsms import UserError, evaluate
from timm_wsms.data import DataSettings, load_split, load_validation
from timm_wsms.evaluation import cascade, plot_costs


@pytest.fixture
def folders(tmp_path):
    """An averaging network and a plain one, with weights as if trained."""
    torch.manual_seed(0)
    names = {"ours": ("wsmean_resnet20_cifar", {"pyramid": [1, 0.5], "unshared_norms": "statistics"})}
    names["plain"] = ("resnet20_cifar", {})
    for folder, (name, arguments) in names.items():
        model = randomize(timm.create_model(name, num_classes=10))
        timm.models.save_for_hf(model, tmp_path / folder, model_args=arguments, safe_serialization=True)
    return tmp_path


@pytest.mark.slow  # runs the command
def test_the_command(folders, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    models = [str(folders / "ours"), str(folders / "plain")]
    words = [
        "--data",
        "digits",
        "--limit",
        "300",
        "--cascade",
        "8",
        "--json",
        str(folders / "found.json"),
        "--output",
        str(folders),
    ]
    evaluate.main([*models, *words])
    printed = capsys.readouterr().out
    ours, plain = json.loads((folders / "found.json").read_text())["models"]
    found = ours["cascade"]
    assert "cascade" not in plain and ours["images"] == plain["images"] == 150
    assert "calibrated on 150 images of test, all figures are of the other 150" in printed
    assert (folders / "cascade.png").stat().st_size > 10_000

    # the same images, evaluated with the stages' logits
    split = cascade.divide(load_split(DataSettings("digits"), limit=300), DataSettings("digits"), 0)[0]
    model = timm.create_model(f"local-dir:{folders / 'ours'}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    x = (torch.from_numpy(split.pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    labels = torch.from_numpy(split.labels)
    with torch.no_grad():
        small, large = model.stages["2"], model.backbone
        first = small.backbone(torch.nn.functional.avg_pool2d(x, 2))
        second = large(x)
    sure = (first / found["temperatures"][0]).softmax(1).amax(1) >= found["confidence"][0]
    answers = torch.where(sure[:, None], first, (first + second) / 2).argmax(1)
    assert found["cascade_top1"] == pytest.approx(100 * (answers == labels).double().mean().item(), abs=0.1)
    assert found["plain_top1"] == pytest.approx(100 * (second.argmax(1) == labels).double().mean().item(), abs=0.1)
    assert abs(found["exits"][0] - int(sure.sum())) <= 2 and sum(found["exits"]) == 150
    costs = [0.25, 1.25]
    assert found["exit_costs"] == pytest.approx(costs, rel=0.01)
    assert found["cost"] == pytest.approx(np.dot(found["exits"], found["exit_costs"]) / 150)
    assert found["sweep"][0][0] == pytest.approx(found["exit_costs"][0])
    assert found["sweep"][-1] == pytest.approx([found["exit_costs"][1], ours["top1"]])
    row = next(line for line in printed.splitlines() if line.startswith("cascade  ")).split()
    assert row[1:4] == [f"{found['cascade_top1']:.2f}", "×", f"{found['cost']:.3f}"]
    assert found["plain_images_per_second"] > 0 < found["cascade_images_per_second"]


@pytest.mark.slow  # runs the command
def test_images_of_other_sizes(folders, capsys):
    """Each has the figures of an evaluation with that input size."""
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=10)
    for module in model.modules():  # running statistics, so that it does not take all images for one class
        module.momentum = None
    pixels = load_split(DataSettings("digits"), limit=100).pixels
    model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    timm.models.save_for_hf(model, folders / "plain", safe_serialization=True)
    found, words = {}, ["--data", "digits", "--limit", "100"]
    for name, more in {"both": ["--image_factors", "[0.5, 1.25]"], "half": ["--input_size", "[3, 16, 16]"]}.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        evaluate.main([str(folders / "plain"), *words, *more, "--json", str(folders / "found.json")])
        (found[name],) = json.loads((folders / "found.json").read_text())["models"]
    half, larger = found["both"]["image_sizes"]
    assert (half["input_size"], larger["input_size"]) == ([3, 16, 16], [3, 40, 40])
    assert {key: found["half"][key] for key in ("multiplications", "top1")} == {
        key: half[key] for key in list(half)[1:]
    }
    assert half["top1"] != found["both"]["top1"] and larger["multiplications"] > found["both"]["multiplications"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(str(folders / "plain"))]
    assert [row[1] for row in rows if "×" in row[1]][:3] == ["32×32", "16×16", "40×40"]


@pytest.mark.parametrize(
    ("model", "factors", "message"),
    [
        ("resnet20_cifar", "[0, 0.5]", "--image_factors is .0.0, 0.5.; give positive numbers"),
        ("test_vit", "[0.33]", "cannot take images of 3×53×53.*; set other --image_factors"),
    ],
)
def test_unsuitable_image_factors_are_refused_at_once(model, factors, message, tmp_path, monkeypatch):
    timm.models.save_for_hf(timm.create_model(model, num_classes=10), tmp_path, safe_serialization=True)
    monkeypatch.setattr(evaluate, "predict", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    words = ["--data", "digits", "--limit", "40", "--image_factors", factors]
    with pytest.raises(UserError, match=message):
        evaluate.main([str(tmp_path), *words])


def test_a_validation_split_serves_for_calibration(tmp_path, monkeypatch):
    from PIL import Image

    for split, count in (("train", 2), ("val", 3), ("test", 4)):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    settings = DataSettings(str(tmp_path))
    test = load_split(settings)
    evaluated, held_out, remark = cascade.divide(test, settings, 0)
    assert evaluated is test and (held_out.name, len(held_out)) == ("val", 6) and "6 images of val" in remark
    own = load_split(DataSettings(str(tmp_path), test_split="val"))
    assert load_validation(settings, own) is None
    evaluated, held_out, remark = cascade.divide(own, settings, 0)
    assert len(evaluated) + len(held_out) == 6 and not {*evaluated.source_rows} & {*held_out.source_rows}
    assert np.bincount(held_out.labels).tolist() == [2, 2] and "no other split" in remark
    part = load_split(DataSettings(str(tmp_path), test_split="val[:50%]"))
    assert load_validation(settings, part) is None


def test_swept_thresholds_begin_with_the_first_exit_and_end_with_the_last():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 200, 4), torch.randint(4, (200,))
    points = cascade.sweep_thresholds(logits, labels, [1.0, 1.0], [0.2, 0.5, 1.5])
    right = (logits.argmax(-1) == labels).double().mean(1) * 100
    assert points[0] == pytest.approx([0.2, right[0].item()]) and points[-1] == pytest.approx([1.5, right[2].item()])
    costs = [cost for cost, _ in points]
    assert costs == sorted(costs) and len(points) == 41


@pytest.mark.slow  # runs the command
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plain", "--cascade", "40"], "--cascade needs a network of averaged logits"),
        (["ours", "--cascade", "0"], "--cascade is 0"),
        (["ours", "--cascade", "1"], "20 images are too few .* at least 544"),
    ],
)
def test_what_does_not_do_is_refused_before_anything_is_evaluated(folders, words, message, monkeypatch):
    monkeypatch.setattr(evaluate, "measure", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UserError, match=message):
        evaluate.main([str(folders / words[0]), "--data", "digits", "--limit", "40", *words[1:]])


def test_classes_of_the_data_are_matched_to_those_of_the_network():
    from timm_wsms.evaluation.class_matching import InOrder

    network = timm.create_model("wsmean_test_resnet", num_classes=3)
    assert cascade.own_classes(InOrder(network, [2, 0, 1]), network).tolist() == [2, 0, 1]
    assert cascade.own_classes(network, network).tolist() == [0, 1, 2]
    assert cascade.is_cascade(network) and not cascade.is_cascade(network.backbone)
    assert isinstance(timm_wsms.Cascade(network.eval()), torch.nn.Module)


def test_the_picture_has_a_curve_and_a_point(tmp_path):
    results = [
        {"model": "ours", "multiplications": 5_000_000, "cascade": {"exit_costs": [0.25, 1.25], "sweep": [[1, 60.0]]}},
        {"model": "plain", "multiplications": 3_000_000, "top1": 70.0},
    ]
    curves, points = cascade.curves_and_points(results)
    assert curves == {"ours, cascade": [(4.0, 60.0)]} and points == {"plain": (3.0, 70.0)}
    sizes = [{"multiplications": 750_000, "top1": 50.0}, {"multiplications": 12_000_000, "top1": 75.0}]
    curves, points = cascade.curves_and_points([results[0], {**results[1], "image_sizes": sizes}])
    assert curves["plain, image size"] == [(0.75, 50.0), (3.0, 70.0), (12.0, 75.0)] and not points
    points = {"plain": (3.0, 70.0)}
    path = plot_costs({"ours": [(1.0, 50.0), (4.0, 60.0)]}, points, tmp_path / "costs.png", "100 images")
    assert path.read_bytes()[:4] == b"\x89PNG"
