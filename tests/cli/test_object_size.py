"""`python -m timm_wsms.object_size` on the repository's two models and a few of scikit-learn's digits."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
from accelerate.state import AcceleratorState
from PIL import Image

from tests.helpers.paths import ROOT
from timm_wsms import cli_errors, evaluate, object_size
from timm_wsms.data import Split
from timm_wsms.errors import UserError
from timm_wsms.evaluation.options import ScaleOptions

pytestmark = pytest.mark.slow  # evaluates networks at every size

MODELS = [str(ROOT / "hub" / "models" / name) for name in ("resnet20_cifar10", "wsms_resnet20_cifar10")]
FEW = ["--data", "digits", "--limit", "24"]


def run(tmp_path, *arguments, cache="off"):
    object_size.main([*arguments, "--json", str(tmp_path / "scale.json"), "--cache", str(cache)])
    return json.loads((tmp_path / "scale.json").read_text())


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A run with all there is; its folder and what it wrote."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("scale")
    more = ["--factors", "[0.5,2]", "--stages", "--gallery", "--heat_images", "[0,3]", "--output", str(folder / "out")]
    more += ["--append", str(folder / "results.jsonl")]
    return folder, run(folder, *MODELS, *FEW, *more, cache=folder / "cache")


def test_size_one_is_what_evaluate_gives(everything, tmp_path):
    evaluate.main([*MODELS, *FEW, "--json", str(tmp_path / "evaluate.json")])
    expected = json.loads((tmp_path / "evaluate.json").read_text())["models"]
    for own, other in zip(everything[1]["models"], expected, strict=True):
        assert own["at_one"] == own["top1"][own["factors"].index(1)] == other["top1"] > 0
        assert own["parameters"] == other["parameters"]


def test_figures(everything):
    figures = everything[1]
    assert (figures["images"], figures["left_out"], figures["split"]) == (24, 0, "test")
    assert figures["border"] == "mean"
    plain, wsms = figures["models"]
    assert (plain["model"], wsms["model"]) == ("resnet20_cifar10", "wsms_resnet20_cifar10")
    for one in (plain, wsms):
        assert one["factors"] == [0.5, 1.0, 2.0] and one["trained_sizes"] == [1.0, 1.0]
        assert one["consistency"][1] == 100.0 and one["area_interval"][0] <= one["area"] <= one["area_interval"][1]
    assert "stages" not in plain and wsms["stages"]["top1"] == wsms["top1"]
    assert np.shape(wsms["stages"]["drop"]) == (3, 3)
    (pair,) = figures["comparisons"]
    difference = 24 * (np.array(wsms["top1"]) - plain["top1"]) / 100
    np.testing.assert_allclose(np.subtract(pair["only_second"], pair["only_first"]), difference, atol=1e-9)
    assert pair["area_difference"] == pytest.approx(wsms["area"] - plain["area"])


def test_lines_are_added_for_every_model(everything):
    lines = [json.loads(line) for line in (everything[0] / "results.jsonl").read_text().splitlines()]
    assert [line["model"] for line in lines] == ["resnet20_cifar10", "wsms_resnet20_cifar10"]
    for line, figures in zip(lines, everything[1]["models"], strict=True):
        assert (line["what"], line["data"], line["images"], line["border"]) == ("object_size", "digits", 24, "mean")
        assert all(line[key] == figures[key] for key in ("factors", "top1", "area", "weights_sha256", "parameters"))


def test_pictures(everything):
    names = {"scale", "stages", "heat_resnet20_cifar10", "heat_wsms_resnet20_cifar10", "gallery"}
    assert {path.name for path in (everything[0] / "out").iterdir()} == {f"{name}.png" for name in names}
    for path in (everything[0] / "out").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 500


def test_second_call_reads_what_the_first_found(everything, tmp_path, monkeypatch, capsys):
    for name in ("predict_sizes", "predict_without_stages"):
        monkeypatch.setattr(object_size, name, lambda *_, **__: pytest.fail("computed again"))
    more = ["--factors", "[0.5,2]", "--stages", "--output", str(tmp_path)]
    assert run(tmp_path, *MODELS, *FEW, *more, cache=everything[0] / "cache") == everything[1]
    assert "* a size seen in training" in capsys.readouterr().out
    for other in (["--border", "reflect"], ["--factors", "[0.5]"], ["--precision", "bf16"], ["--on_bad_image", "skip"]):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            run(tmp_path, *MODELS, *FEW, *more, *other, cache=everything[0] / "cache")


def test_another_pyramid_of_the_same_weights_is_computed_anew(tmp_path):
    ours = str(ROOT / "hub" / "models" / "wsms_resnet20_sizes_cifar10")
    found = {}
    for cache in (tmp_path / "cache", "off"):
        for pyramid in ("[1, 0.5]", "[1, 0.25]"):
            more = ["--data", "digits", "--limit", "200", "--factors", "[1]", "--model_kwargs.pyramid", pyramid]
            found[cache, pyramid] = run(tmp_path, ours, *more, cache=cache)["models"][0]["top1"]
    half, quarter = (found["off", pyramid] for pyramid in ("[1, 0.5]", "[1, 0.25]"))
    assert half != quarter
    assert [half, quarter] == [found[tmp_path / "cache", pyramid] for pyramid in ("[1, 0.5]", "[1, 0.25]")]


def test_classes_in_another_order(everything, tmp_path):
    """A model that names the data's classes in another order gives the same answers, with its stages left out too."""
    folders = [Path(shutil.copytree(MODELS[1], tmp_path / name)) for name in ("same", "other")]
    names = [str(digit) for digit in range(10)]
    for folder, own in zip(folders, (names, names[1:] + names[:1]), strict=True):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "label_names": own}))
    more = ["--factors", "[2]", "--stages", "--output", str(tmp_path / "out")]
    same, other = run(tmp_path, *map(str, folders), *FEW, *more)["models"]
    assert same["stages"]["top1"] == same["top1"] and other["stages"]["top1"] == other["top1"]
    assert same["top1"] != other["top1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages"], "--output"),
        (["--factors", "[0]"], "sizes must be positive"),
        (["--border", "black"], "border"),
        (["--limit", "0"], "--limit"),
        (["--seed", "-1"], "--seed is -1"),
        (["--stages", "--output", "x", "--heat_images", "[]"], "--heat_images is empty"),
        (["--stages", "--output", "x", "--heat_images", "[24]"], "--heat_images 24 is not in split 'test'"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*MODELS, *FEW, "--cache", "off", "--factors", "[1]", *arguments]
    with pytest.raises(UserError, match=message) as error:
        object_size.main(words)
    assert "\n" not in cli_errors.explain(error.value)


@pytest.mark.parametrize(
    ("models", "arguments", "message"),
    [
        ([MODELS[0], MODELS[0]], [], "named twice"),
        ([MODELS[0]], ["--gallery", "--output", "x"], "name the backbones first"),
        ([MODELS[0]], ["--stages", "--output", "x"], "only a network of several stages"),
        (["no_such_model"], [], "no_such_model"),
    ],
)
def test_models_that_cannot_be_evaluated(models, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        object_size.main([*models, *FEW, *arguments, "--cache", "off"])


def digits_of_noise() -> Split:
    return Split("test", np.arange(4), list("abcd"), pixels=np.zeros((4, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("fusion", ["concat", "mean"])
def test_one_network_of_stages_is_enough_for_them_to_be_looked_into(fusion):
    plain, several = timm.create_model("resnet20_cifar"), timm.create_model("wsms_resnet20_cifar", fusion=fusion)
    split, options = digits_of_noise(), ScaleOptions("digits")
    object_size.check_stages([SimpleNamespace(network=network) for network in (plain, several)], split, options)
    with pytest.raises(UserError, match="only a network of several stages"):
        object_size.check_stages([SimpleNamespace(network=plain)], split, options)


def test_images_that_cannot_be_decoded_are_counted_and_have_no_heat_map(tmp_path, capsys):
    for place in range(12):
        file = tmp_path / "images" / "test" / str(place % 10) / f"{place:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((70 + place, 90, 3), 20 * place, np.uint8)).save(file)
    file.write_bytes(b"no image")  # the third in the order of its classes
    arguments = ["--data", str(tmp_path / "images"), "--on_bad_image", "skip", "--workers", "0", "--factors", "[1]"]
    figures = run(tmp_path, MODELS[1], *arguments)
    assert (figures["images"], figures["left_out"]) == (11, 1)
    assert "11 images (1 left out) of split test\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"Row 3 .* Name others with --heat_images"):
        run(tmp_path, MODELS[1], *arguments, "--stages", "--output", str(tmp_path / "out"))


def test_short_names():
    assert object_size.labels(["outputs/a/model", "outputs/b/model", "resnet50.a1_in1k"]) == [
        "a",
        "b",
        "resnet50.a1_in1k",
    ]
    assert object_size.labels(["x/a", "y/a"]) == ["x/a", "y/a"]


def test_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["object_size", "no_such_model", *FEW])
    monkeypatch.delitem(sys.modules, "timm_wsms.object_size")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("timm_wsms.object_size", run_name="__main__")
    told = capsys.readouterr().err
    assert ended.value.code == cli_errors.EXIT_CODE and "Traceback" not in told
    assert told.startswith("error: ") and len(told.splitlines()) == 1
