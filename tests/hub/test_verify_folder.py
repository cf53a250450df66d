"""Checkpoint folders that are not what they say, and configs from a stranger: all refused, nothing of them executed."""

import contextlib
import json
import pickle
import runpy
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers.checkpoints import Evil
from tests.helpers.paths import ROOT
from timm_wsms.errors import UserError
from timm_wsms.files import write_tensors
from timm_wsms.hub import results
from timm_wsms.hub.verify_folder import check_config, check_folder
from timm_wsms.training.checkpoint_folder import run_hash

MODELS = ROOT / "hub" / "models"
add_model = runpy.run_path(str(ROOT / "hub" / "add_model.py"))["add_model"]
NAMES = ("wsms_resnet20_cifar10", "resnet20_cifar10")
WEIGHTS, TENSORS = "model.safetensors", "test/tensors.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder to spoil."""
    return Path(shutil.copytree(MODELS / NAMES[0], tmp_path / "model"))


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_models_are_what_they_say(name):
    model = check_folder(MODELS / name)
    recorded = load_file(MODELS / name / TENSORS)
    loaded = timm.create_model(f"local-dir:{MODELS / name}", pretrained=True).eval()
    with torch.no_grad():
        for each in (model, loaded):
            torch.testing.assert_close(each(recorded["input"]), recorded["logits"], rtol=1e-4, atol=1e-4)


def pickled(folder):
    (folder / "weights.pth").write_bytes(b"")


def stray(folder):
    (folder / ".env").write_text("PASSWORD=1")


def missing(folder):
    (folder / TENSORS).unlink()


def of_another_run(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 9, "test_top1": 99.0}\n')


def without_run(folder):
    write_tensors(folder / WEIGHTS, load_file(folder / WEIGHTS))


def cut_off(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    write_tensors(folder / WEIGHTS, tensors, run=run_hash(folder))


def a_weight_less(folder):
    weights(folder, lambda tensors: tensors.pop("head.fc.weight"))


def another_shape(folder):
    weights(folder, lambda tensors: tensors.update({"head.fc.weight": torch.zeros(11, 128)}))


def one_weight_off(folder):
    weights(folder, lambda tensors: tensors["head.fc.bias"].__setitem__(0, tensors["head.fc.bias"][0] + 0.1))


def not_finite(folder):
    weights(folder, lambda tensors: tensors["head.fc.bias"].fill_(float("nan")))


def another_accuracy(folder):
    content = json.loads((folder / "results.json").read_text())
    content["rows"][-1]["accuracy"] = 99.0
    (folder / "results.json").write_text(json.dumps(content))


def of_pretrained_cfg(**changes):
    """Changes in config.json what it says of images and classes, as an editor would."""

    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        content["pretrained_cfg"] |= changes
        (folder / "config.json").write_text(json.dumps(content))

    return change


def other_order_of_labels(folder):
    content = json.loads((folder / "config.json").read_text())
    names = content["label_names"]
    (folder / "data.json").write_text(json.dumps({"classes": names}))
    check_folder(folder)
    content["label_names"] = [names[1], names[0], *names[2:]]
    (folder / "config.json").write_text(json.dumps(content))


def another_top5(folder):
    content = json.loads((folder / "results.json").read_text())
    content["rows"][-1]["top5"] = 12.0
    (folder / "results.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (pickled, "weights.pth is pickled, and pickles are not published; move it out"),
        (stray, ".env is not part of a model; move it out"),
        (missing, "has no test/tensors.safetensors"),
        (of_another_run, "is from another run than settings.yaml and metrics.jsonl beside it"),
        (without_run, "does not say which run it is from"),
        (cut_off, "is not a complete safetensors file"),
        (a_weight_less, "does not load"),
        (another_shape, "does not load"),
        (one_weight_off, "the model's logits are not those recorded"),
        (not_finite, "the model's logits are not those recorded"),
        (another_accuracy, "says test_top1 99.0, metrics.jsonl 86.32"),
        (another_top5, "says test_top5 12.0, metrics.jsonl"),
        (other_order_of_labels, "has other label_names than the classes in data.json; restore it"),
        (of_pretrained_cfg(mean=[0.5]), "mean [0.5] must have one value for each of 3 channels"),
        (of_pretrained_cfg(std=[0.2, 0.0, 0.2]), "std [0.2, 0.0, 0.2] must be positive"),
        (of_pretrained_cfg(crop_pct=5), "crop_pct 5 must be above 0 and at most 1"),
        (of_pretrained_cfg(interpolation="foo"), "config says of its images"),
        (of_pretrained_cfg(crop_mode="foo"), "crop_mode 'foo' is none of center, squash, border"),
        (
            lambda folder: (
                shutil.move(folder, folder.parent / "x") and shutil.copytree(folder.parent / "x", folder / "model")
            ),
            "is the folder of a run; give",
        ),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_folders_that_are_not_what_they_say(folder, spoil, words):
    spoil(folder)
    with pytest.raises(UserError) as caught:
        check_folder(folder)
    assert words in " ".join(str(caught.value).split())


# model_args, pretrained_cfg and the top level of a config.json, with words of the refusal
HOSTILE = [
    ({"model_args": {"checkpoint_path": "evil.pth"}}, "unknown argument 'checkpoint_path'"),
    ({"model_args": {"pretrained_cfg_file": "evil"}}, "unknown argument 'pretrained_cfg_file'"),
    ({"model_args": {"block": "os.system"}}, "unknown argument 'block'"),
    ({"model_args": {"features_only": True}}, "unknown argument 'features_only'"),
    ({"model_args": {"num_classes": 5}}, "the config says num_classes '10'; model_args say another"),
    ({"model_args": {"in_chans": 10**9}}, "in_chans = '1000000000', which no network accepts"),
    ({"model_args": {"in_chans": "3"}}, "in_chans = '3', which no network accepts"),
    ({"model_args": {"integration_channels": 10**9}}, "integration_channels = 1000000000; nothing above"),
    ({"model_args": {"img_size": [32, 10**7]}}, "img_size"),
    ({"model_args": {"channels": [31, 2000, 92]}}, "channels = '[31, 2000, 92]', which no network accepts"),
    ({"model_args": {"global_pool": ["avg"]}}, "global_pool"),
    ({"model_args": {"drop_rate": "__import__('os')"}}, "drop_rate"),
    ({"pretrained_cfg": {"url": "http://127.0.0.1/evil.pth"}}, "pretrained_cfg has 'url'"),
    ({"pretrained_cfg": {"hf_hub_id": "evil/model"}}, "pretrained_cfg has 'hf_hub_id'"),
    ({"pretrained_cfg": {"hf_hub_filename": "pytorch_model.bin"}}, "pretrained_cfg has 'hf_hub_filename'"),
    ({"pretrained_cfg": {"state_dict": {"a": 1}}}, "pretrained_cfg has 'state_dict'"),
    ({"pretrained_cfg": {"custom_load": True}}, "pretrained_cfg has 'custom_load'"),
    ({"pretrained_cfg": {"mean": "0.5"}}, "the config says mean '0.5'"),
    ({"pretrained_cfg": {"input_size": [3, 0, -1]}}, "the config says input_size"),
    ({"pretrained_cfg": {"classifier": {"a": "b"}}}, "the config says classifier"),
    ({"num_classes": 10**12}, "the config says num_classes"),
]
# What timm itself trips over, before this package is asked; only our own reader says so in one line.
BY_TIMM = [
    ({"architecture": "hf-hub:evil/model"}, "architecture 'hf-hub:evil/model', which timm does not know"),
    ({"architecture": "../../evil"}, "architecture '../../evil'"),
    ({"architecture": ["wsms_resnet20_cifar"]}, "architecture"),
    ({"pretrained_cfg": "evil"}, "is not a timm config"),
    ({"model_args": {"pretrained_cfg": {"file": "evil.pth"}}}, "unknown argument 'pretrained_cfg'"),
    ({"model_args": {"pretrained": True}}, "unknown argument 'pretrained'"),
    ({"model_args": {"cache_dir": "/"}}, "unknown argument 'cache_dir'"),
]
# What timm takes as it is, and does no harm there.
HARMLESS = [
    ({"architecture": "wsms_resnet20_cifar.evil"}, "architecture 'wsms_resnet20_cifar.evil'"),
    ({"label_names": ["cat"]}, "1 labels for 10 classes"),
]


def changed(folder, change):
    """Writes a config that says `change` besides, and a pickle that a careless reader would load."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    for name in ("evil.pth", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Evil()))


@pytest.mark.parametrize(("change", "words"), HOSTILE)
def test_hostile_configs(folder, change, words, monkeypatch):
    changed(folder, change)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as caught:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(UserError) as caught:
        check_config(folder)
    assert words in str(caught.value)
    assert not Evil.ran


@pytest.mark.parametrize(("change", "words"), [*BY_TIMM, *HARMLESS])
def test_hostile_configs_that_do_not_come_as_far(folder, change, words, monkeypatch):
    changed(folder, change)
    monkeypatch.chdir(folder)
    with contextlib.nullcontext() if (change, words) in HARMLESS else pytest.raises(Exception):  # of timm's or Python's
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(UserError) as caught:
        check_config(folder)
    assert words in str(caught.value)
    assert not Evil.ran


@pytest.mark.parametrize("change", [{"model_args": {"stages": 2}}, {"model_args": {"block": "x"}}])
def test_configs_of_plain_backbones_are_checked_too(tmp_path, change):
    folder = Path(shutil.copytree(MODELS / NAMES[1], tmp_path / "model"))
    check_config(folder)
    changed(folder, change)
    with pytest.raises(UserError, match="unknown argument"):
        check_config(folder)


def test_add_model(tmp_path, folder):
    other = Path(shutil.copytree(MODELS / NAMES[1], tmp_path / "other"))
    target = tmp_path / "kept"
    own = results.read(folder).rows[-1]
    results.write(folder, [own], {"processes": 1, "device": "Some CPU", "versions": {}})
    add_model(folder, target, other, "uoft-cs/cifar10")
    check_folder(target)
    kept = results.read(target)
    assert [row.model for row in kept.rows] == ["resnet20_cifar", "wsms_resnet20_cifar"]
    assert (kept.data, kept.hardware["device"]) == ("uoft-cs/cifar10", "Some CPU")
    assert "| resnet20_cifar | 0.270 M |" in (target / "README.md").read_text()

    settings = yaml.safe_load((other / "settings.yaml").read_text())
    (other / "settings.yaml").write_text(yaml.safe_dump({**settings, "epochs": 9, "seed": 3}))
    with pytest.raises(UserError, match=r"was trained with different epochs; compare like with like"):
        add_model(folder, target, other)
