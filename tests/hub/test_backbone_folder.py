"""Stages published as plain timm checkpoints: what processes without timm_wsms compute, and what the card says."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load, load_file

from benchmarks.reliability import file_systems
from tests.helpers.networks import EXACT, images, randomize
from tests.helpers.paths import ROOT
from tests.helpers.publishing import REPO, publish, refused
from timm_wsms import cli_errors
from timm_wsms.data import DataSettings, load_splits
from timm_wsms.errors import UserError
from timm_wsms.evaluation import Row
from timm_wsms.files import write_tensors
from timm_wsms.hub import backbone_folder, results, verify
from timm_wsms.hub import publish as publishing
from timm_wsms.hub.verify_folder import TENSORS, check_folder
from timm_wsms.publish import REMEDIES
from timm_wsms.training.checkpoint_folder import reference_images, reference_tensors, run_hash, save_model_folder
from timm_wsms.training.settings import Settings, dump

torch.set_num_threads(1)
HARDWARE = {"processes": 1, "device": "Some GPU", "versions": {"torch": "9.9", "timm": "8.8"}}
PLAIN = Row("test_resnet", 1_000_000, 80_000_000, 60.0, {8: 50.0, 16: 70.0})
OWN = Row("wsmean_test_resnet", 1_000_000, 100_000_000, 81.25, {8: 75.0, 16: 87.5})
ALONE = {"test_top1": 71.5, "test_top5": 98.5, "by_size": {"8": 62.0, "16": 81.0}}
DIGITS = [str(digit) for digit in range(10)]
LOAD = """
import sys
sys.modules["timm_wsms"] = None  # importing it fails
import timm, torch
from safetensors.torch import load_file, save_file
place, inputs, outputs = sys.argv[1:]
model = timm.create_model(place, pretrained=True).eval()
assert type(model).__module__.startswith("timm.models.") and not timm.is_model("wsmean_test_resnet")
with torch.no_grad():
    logits = model(load_file(inputs)["input"])
said = timm.data.resolve_model_data_config(model)["input_size"]
save_file({"logits": logits, "input_size": torch.tensor(said)}, outputs)
"""


def folder_of(path, name="wsmean_test_resnet", alone=ALONE, bias=0.0, **kwargs):
    """A network's checkpoint folder as a run leaves it."""
    torch.manual_seed(0)
    path.mkdir()
    model = randomize(timm.create_model(name, num_classes=10, **kwargs)).eval()
    model.get_classifier().bias.data.sub_(bias)
    settings = Settings(model=name, stage_loss=0.5)
    settings.data.input_size = [3, 32, 32]
    (path / "settings.yaml").write_text(dump(settings))
    last = {"epoch": 2, "test_top1": OWN.accuracy, "test_top5": 99.0} | ({"backbone": alone} if alone else {})
    (path / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n" + json.dumps(last) + "\n")
    config = {**timm.data.resolve_model_data_config(model), "input_size": (3, 32, 32), "crop_pct": 1.0}
    save_model_folder(model, path, config, DIGITS, reference_images((3, 32, 32)), run=run_hash(path))
    results.write(path, [PLAIN, OWN], HARDWARE)
    return path


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "model")


def written(folder, stage=1, figures=None):
    target = folder.with_name(f"stage{stage}")
    target.mkdir()
    backbone_folder.write(folder, target, stage, figures)
    return target


def without_the_package(place, inputs, outputs, **environment):
    """What a process computes that cannot import timm_wsms."""
    command = [sys.executable, "-c", LOAD, place, str(inputs), str(outputs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", **environment}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=outputs.parent, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return load_file(outputs)


@torch.no_grad()
def stage_logits(folder, stage):
    """Of the recorded input, by the network."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return network.stage_logits(load_file(folder / "test" / "tensors.safetensors")["input"])[stage - 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kwargs, stage, side",
    [
        ("wsmean_test_resnet", {}, 1, 32),
        ("wsmean_test_resnet", {"pyramid": [1, 0.7]}, 2, 22),
        ("wsmean_test_vit", {"img_size": 32}, 2, 16),
        ("wsmean_test_mambaout", {}, 1, 32),
    ],
)
def test_timm_alone_loads_it_and_computes_the_same_logits(name, kwargs, stage, side, tmp_path):
    folder = folder_of(tmp_path / "model", name, **kwargs)
    plain = written(folder, stage)
    check_folder(plain)
    inputs = plain / "test" / "tensors.safetensors"
    found = without_the_package(f"local-dir:{plain}", inputs, tmp_path / "out")
    assert found["input_size"].tolist() == [3, side, side] and load_file(inputs)["input"].shape[-1] == side
    torch.testing.assert_close(found["logits"], stage_logits(folder, stage), **EXACT)


@pytest.mark.slow
def test_from_the_hub(folder, hub, client, tmp_path):
    code, shown, told = publish(client, "--as-backbone", "--dry-run", folder=folder)
    assert code == 0 and "+ model.safetensors" in shown and not hub.repos, told
    code, shown, told = publish(client, "--as-backbone", folder=folder)
    assert code == 0 and "Load it: import timm; model" in shown, told
    commits = hub.repos[REPO].commits
    card = commits[hub.repos[REPO].branch]["README.md"].decode()
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in card and "import timm, timm_wsms" not in card
    where = {"HF_ENDPOINT": client.endpoint, "HF_HOME": str(tmp_path / "home")}
    found = without_the_package(f"hf-hub:{REPO}", folder / "test" / "tensors.safetensors", tmp_path / "out", **where)
    torch.testing.assert_close(found["logits"], stage_logits(folder, 1), **EXACT)
    assert client.command("verify", REPO)[0] == 0
    words = "plain timm has no resnet20_cifar"
    assert words in refused(publish(client, "--as-backbone", folder=ROOT / "hub/models/wsms_resnet20_sizes_cifar10"))
    assert "leave it out" in refused(publish(client, "--data", "digits", folder=folder))
    assert "cannot have tags of its own" in refused(publish(client, "--as-backbone", "--register", "x", folder=folder))


def test_what_is_in_the_folder(folder):
    plain = written(folder)
    check_folder(plain)
    for name in ("settings.yaml", "metrics.jsonl"):  # how it was trained
        assert (plain / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((plain / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["label_names"]) == ("test_resnet", 10, DIGITS)
    described = config["pretrained_cfg"]
    assert (described["input_size"], described["crop_pct"], described["classifier"]) == ([3, 32, 32], 1.0, "fc")
    assert not {"fusion", "pyramid", "unshared_norms"} & config["model_args"].keys()
    found = results.read(plain)
    assert found.rows[:2] == [PLAIN, OWN] and found.taken == results.Taken("wsmean_test_resnet", 1, 1.0)
    row, model = found.rows[2], timm.create_model("test_resnet", num_classes=10)
    assert (row.model, row.accuracy, row.by_size) == ("stage 1 of wsmean_test_resnet", 71.5, {8: 62.0, 16: 81.0})
    assert row.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_card_says_how_it_was_trained_and_shows_both_curves(folder):
    plain = written(folder)
    text = (plain / "README.md").read_text()
    for words in (
        *(
            "stage 1 of `wsmean_test_resnet`",
            "with the same weights, and the logits were averaged, with a loss on each stage's logits",
            "Loss per stage | weight 0.5",
        ),
        *("Top-1 accuracy 71.50 %, top-5 98.50 %", "| 81.25 | – | 75.0 | 87.5 |", "| 71.50 | 98.50 | 62.0 | 81.0 |"),
        *("import timm\nmodel", "`test_resnet` the plain backbone, trained with the same settings", "scale.png"),
    ):
        assert words in text, words
    assert "timm_wsms" not in text.replace("python -m timm_wsms", "") and "compari" not in text
    assert (plain / "scale.png").read_bytes().startswith(b"\x89PNG")
    (result,) = [one for one in ModelCard(text).data.eval_results if "Top-1" in one.metric_name]
    assert result.metric_value == 71.5


def test_a_stage_that_was_not_measured(folder):
    text = (written(folder, 2) / "README.md").read_text()
    assert "The accuracy of this stage alone, with timm's transform, was not measured." in text
    assert "0.5 times the size of stage 1's" in text and "image to 16×16 pixels instead" in text
    assert "| stage 2 of wsmean_test_resnet |" in text and "3 × 16 × 16" in text
    assert not ModelCard(text).data.eval_results
    old = folder_of(folder.with_name("old"), alone=None)  # of a run that measured nothing of the kind
    assert results.read(written(old)).rows[-1].accuracy is None
    check_folder(folder.with_name("stage1"))


@pytest.mark.slow
def test_its_accuracy_is_measured_through_timms_transform(folder, tmp_path, monkeypatch):
    split = load_splits(DataSettings(test_limit=40), seed=0)[1]
    monkeypatch.setattr(verify, "load_split", lambda data, seed: split)

    def by_hand(plain):
        model = timm.create_model(f"local-dir:{plain}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        with torch.no_grad():
            return model(torch.stack([transform(Image.fromarray(pixels)) for pixels in split.pixels]))

    bias = by_hand(written(folder, 2)).mean(0)  # without which an untrained network calls every digit the same
    folder = folder_of(tmp_path / "balanced", bias=bias)
    plain = publishing.take_stage(folder, tmp_path, 2, "digits")
    check_folder(plain)
    predicted = by_hand(plain).argmax(1)
    assert predicted.unique().numel() > 3
    right = (predicted == torch.from_numpy(split.labels)).double()
    row = results.read(plain).rows[-1]
    assert row.accuracy == pytest.approx(100 * right.mean().item())
    for size, accuracy in row.by_size.items():
        assert accuracy == pytest.approx(100 * right[torch.from_numpy(split.object_sizes == size)].mean().item())
    assert verify.verify(str(plain), "digits")[-1].endswith(f"it says {row.accuracy:.2f} %")
    unknown = folder.with_name("stage2")
    assert verify.verify(str(unknown), "digits")[-1].endswith("it does not say what it should be")


def test_images_of_other_classes_are_not_measured(folder, tmp_path):
    for name in ("p", "q"):
        for number in range(4):
            path = tmp_path / "images" / "test" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
    with pytest.raises(UserError, match=r"has other classes than the model|has 10 classes, but the data has 2"):
        publishing.take_stage(folder, tmp_path, 2, str(tmp_path / "images"))
    for place in range(2, 10):  # ten classes, of which it knows two, at other places
        names = ["1", "0", *map(str, "cdefghij")]
        path = tmp_path / "ten" / "test" / names[place] / "a.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    for name in ("8", "9"):
        shutil.copytree(tmp_path / "ten" / "test" / "c", tmp_path / "ten" / "test" / name)
    with pytest.raises(UserError, match=r"other classes|does not know these of the data's 10"):
        publishing.take_stage(folder, tmp_path, 2, str(tmp_path / "ten"))


@pytest.mark.parametrize("model", [1, 2])
def test_another_accuracy_than_the_runs_is_refused(folder, model):
    plain = written(folder)
    found = results.read(plain)
    found.rows[model] = Row(**{**vars(found.rows[model]), "accuracy": 99.0})
    results.write(plain, found.rows, HARDWARE, taken=found.taken)
    with pytest.raises(UserError, match=r"says test_top1 99\.0, metrics\.jsonl (71\.5|81\.25)"):
        check_folder(plain)


@pytest.mark.parametrize("backbone", ["resnet20_cifar", "mnist_cnn", "resnet50_avgpool"])
def test_architectures_that_plain_timm_does_not_have_are_refused(backbone):
    assert not backbone_folder.in_timm(backbone)
    with torch.device("meta"):
        network = timm.create_model(f"wsmean_{backbone}")
    with pytest.raises(UserError, match=f"plain timm has no {backbone}, .*; publish the network itself") as caught:
        backbone_folder.check(network)
    assert "\n" not in str(caught.value)


def test_timms_own_architectures_are_known():
    assert all(map(backbone_folder.in_timm, ("resnet50", "test_vit")))
    assert not any(map(backbone_folder.in_timm, ("wsmean_resnet50", "no_such_model")))


def test_a_folder_of_a_plain_model_has_no_stages(folder):
    plain = Path(shutil.copytree(written(folder), folder.with_name("copy")))
    with pytest.raises(UserError, match=r"plain timm model already, .* leave out --as-backbone"):
        publishing.publish(plain, publishing.Options(REPO, as_backbone=1, dry_run=True))


@pytest.mark.slow
@pytest.mark.usefixtures("mounting")
def test_no_room_in_tmpdir_is_told_with_the_remedy_and_leaves_nothing_there(folder, tmp_path, monkeypatch):
    place = tmp_path / "small"
    place.mkdir()
    with file_systems.memory(place), file_systems.full(place, 64 * 1024):
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with pytest.raises(OSError, match="No space left") as caught:
            publishing.publish(folder, publishing.Options(REPO, as_backbone=1))
        assert [path.name for path in place.iterdir()] == ["filler"]
    remedies = "free some space, then run it again, or set TMPDIR to a folder on another disk"
    assert cli_errors.explain(caught.value, REMEDIES) == f"the disk is full; {remedies}"


def test_pictures_of_an_older_run_are_not_published(folder):
    """Its test tensors hold two of its test images; they are replaced by noise, in the stage's folder too."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert publishing.contents(folder, "me/model", model)[TENSORS] == folder / TENSORS  # noise already
    write_tensors(folder / TENSORS, reference_tensors(model, images(32)))
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sent = load(publishing.contents(folder, "me/model", model)[TENSORS])
    assert torch.equal(sent["input"], noise)
    with torch.no_grad():
        torch.testing.assert_close(sent["logits"], model(noise), **EXACT)
    assert torch.equal(load_file(written(folder) / TENSORS)["input"], noise)


def test_figures_of_a_later_evaluation_stay_apart_from_the_run_s(folder):
    """The run's own figure of the stage is of other images."""
    evaluated = results.Evaluated("test", 3925)
    results.write(folder, [PLAIN, replace(OWN, accuracy=60.0)], HARDWARE, evaluated=evaluated)
    plain = written(folder)
    found = results.read(plain)
    assert found.evaluated == evaluated and [row.accuracy for row in found.rows[1:]] == [60.0, None]
    check_folder(plain)


def test_what_was_evaluated_later_is_verified_on_that_split(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(verify, "load_split", lambda data, seed: asked.append(data.test_split) or 1 / 0)
    for evaluated, split in ((None, "test"), (results.Evaluated("test[:50%]", 30), "test[:50%]")):
        results.write(folder, [PLAIN, OWN], HARDWARE, evaluated=evaluated)
        with pytest.raises(ZeroDivisionError):
            verify.figures(None, folder, "digits")
        assert asked[-1] == split
