"""The models kept in the repository: each is sound, its card says what its files do. Which runs may stand together."""

import json
import runpy

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers.paths import ROOT
from timm_wsms.errors import UserError
from timm_wsms.hub import card, results
from timm_wsms.hub.verify_folder import check_folder

MODELS = sorted((ROOT / "hub" / "models").iterdir())
script = runpy.run_path(str(ROOT / "hub" / "add_model.py"))
add_model, check_alike = script["add_model"], script["check_alike"]


@pytest.mark.parametrize("folder", MODELS, ids=[folder.name for folder in MODELS])
def test_a_kept_model_is_sound(folder):
    check_folder(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == card.render(folder)
    of_data = {"cifar10": "uoft-cs/cifar10", "flowers": "flowers", "imagenette": "imagenette"}
    data = of_data[folder.name.rpartition("_")[2]]
    assert json.loads((folder / "results.json").read_text())["data"] == data
    assert (folder / "model.safetensors").stat().st_size < 20e6
    shown = load_file(folder / "test" / "tensors.safetensors")["input"]
    assert torch.equal(shown, torch.randn(shown.shape, generator=torch.Generator().manual_seed(0)))  # no pictures


def test_documents_quote_the_accuracies_of_the_kept_models():
    words = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    found = {folder.name: results.read(folder).rows[-1].accuracy for folder in MODELS}
    cifar = ("resnet20_cifar10", "wsms_resnet20_cifar10", "wsms_resnet20_sizes_cifar10")
    assert "have {:.2f}, {:.2f} and {:.2f} % on CIFAR-10's test images".format(*map(found.get, cifar)) in words
    flowers = ("tf_efficientnet_lite0_flowers", "wsmean_tf_efficientnet_lite0_flowers")
    assert "have {:.2f} and {:.2f} % on that fold's 862 test images".format(*map(found.get, flowers)) in words
    imagenette = ("resnet10t_imagenette", "wsmean_resnet10t_imagenette")
    assert "have {:.2f} and {:.2f} % on Imagenette's 3,925".format(*map(found.get, imagenette)) in words
    report = json.loads((ROOT / "benchmarks" / "results" / "photographs.json").read_text())["imagenette_test"]
    rows = {row["form"]: row["size 1"] for row in report if row["regime"] == "20 epochs"}
    assert [rows["plain"], rows["mean at 128"]] == [round(found[name], 2) for name in imagenette]  # the same runs


def test_runs_that_are_compared_differ_in_network_and_seed_alone(tmp_path):
    common = {"lr": 0.2, "epochs": 8}
    alike = {
        "one": {"model": "wsms_a", "stage_loss": 1.0, "seed": 1, "data": {"source": "x", "input_size": [3, 112, 112]}},
        "other": {"model": "a", "data": {"source": "x", "input_size": None}},
    }
    for name, more in alike.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.yaml").write_text(yaml.safe_dump({**common, **more}))
    check_alike(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / "settings.yaml").write_text(
        yaml.safe_dump({"lr": 0.1, "model": "a", "data": {"source": "x"}})
    )
    with pytest.raises(UserError, match="other was trained with different epochs and lr; compare like with like"):
        check_alike(tmp_path / "one", tmp_path / "other")


def evaluation_of(**top1):
    """What timm_wsms.evaluate --json writes, of models kept in the repository."""
    models = []
    for name, value in top1.items():
        model = timm.create_model(f"local-dir:{ROOT / 'hub' / 'models' / name}")
        config = json.loads(json.dumps(timm.data.resolve_model_data_config(model)))
        one = {
            "model": f"local-dir:{ROOT / 'hub' / 'models' / name}",
            "images": 3925,
            "left_out": 0,
            "model_kwargs": {},
        }
        models.append({**one, "top1": value, "top5": value + 9, "data_config": config})
    return {"data": "somewhere/cifar10", "split": "test", "limit": None, "precision": "no", "models": models}


def test_figures_of_a_test_split_take_the_place_of_the_runs_own(tmp_path):
    ours, plain = (ROOT / "hub" / "models" / name for name in ("wsms_resnet20_cifar10", "resnet20_cifar10"))
    file, target = tmp_path / "test.json", tmp_path / "added"
    file.write_text(json.dumps(evaluation_of(**{ours.name: 71.25, plain.name: 66.5})))
    add_model(ours, target, plain, evaluated=file)
    text = (target / "README.md").read_text(encoding="utf-8")
    words = " ".join(text.split())
    assert "Top-1 accuracy 71.25 %, top-5 80.25 % on the 3,925 images of the split `test`" in words
    assert "measured after training." in words  # that of the run has the same name
    table = [line for line in text.splitlines() if line.startswith(("| resnet20", "| wsm"))]
    assert [line.split(" | ")[3] for line in table] == ["66.50", "71.25"]
    assert "value: 71.25" in text and "split: test" in text
    check_folder(target)
    recorded = load_file(target / "test" / "tensors.safetensors")
    assert torch.equal(recorded["input"], torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    model = timm.create_model(f"local-dir:{ours}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(recorded["logits"], model(recorded["input"]))
    assert results.read(target).evaluated == results.Evaluated("test", 3925)


def test_figures_that_are_missing_or_of_other_images_are_refused(tmp_path):
    ours, plain = (ROOT / "hub" / "models" / name for name in ("wsms_resnet20_cifar10", "resnet20_cifar10"))
    file = tmp_path / "test.json"
    whole = evaluation_of(**{ours.name: 71.25, plain.name: 66.5})
    fewer = {**whole, "models": [whole["models"][0], {**whole["models"][1], "images": 3924}]}
    config = whole["models"][0]["data_config"]

    def of_all(**changes):
        return {**whole, "models": [{**one, **changes} for one in whole["models"]]}

    resized = of_all(data_config={**config, "input_size": [3, 40, 40]})
    bad = {**whole, "models": [whole["models"][0], {**whole["models"][1], "left_out": 1}]}
    for content, words in (
        (evaluation_of(**{ours.name: 71.25}), f"has no figures for {plain}; evaluate it"),
        (fewer, "evaluate all on the same images"),
        (bad, "evaluate all on the same images"),
        ({**whole, "limit": 3925}, "evaluate all on the same images"),
        (resized, "resnet20_cifar10 was evaluated at another image size; leave out --input_size"),
        (of_all(data_config={**config, "crop_pct": 0.5}), "was evaluated with different crop_pct; leave that out"),
        (of_all(model_kwargs={"pyramid": [1]}), "was evaluated with different model_kwargs; leave that out"),
        ({**whole, "precision": "bf16"}, "was evaluated with different precision; leave that out"),
        ({**whole, "data": "somewhere/mnist"}, "figures for mnist, but .* was trained on cifar10; evaluate it on that"),
        ({"models": 3}, "test.json does not hold what it should"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=words):
            add_model(ours, tmp_path / "added", plain, evaluated=file)
    assert not (tmp_path / "added").exists()


def test_what_is_not_there_is_named(tmp_path):
    ours = ROOT / "hub" / "models" / "wsms_resnet20_cifar10"
    for arguments, words in (
        ({"beside": tmp_path / "nowhere"}, "there is no folder .*nowhere"),
        ({"beside": ours}, "is the folder itself; give --beside the run to compare it with"),
        ({"evaluated": tmp_path / "nothing.json"}, "there is no file .*nothing.json; write it with"),
    ):
        with pytest.raises(UserError, match=words):
            add_model(ours, tmp_path / "added", **arguments)
    assert not (tmp_path / "added").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/b", "/tmp", ".hidden"])
def test_a_name_is_one_folder_below_hub_models(name, monkeypatch):
    """Whatever is at the target is replaced, so it must not be anything else."""
    monkeypatch.setattr("sys.argv", ["add_model.py", "folder", "--as", name])
    called = []
    monkeypatch.setitem(script["main"].__globals__, "add_model", lambda *arguments: called.append(arguments))
    with pytest.raises(UserError, match="give a name for a folder under hub/models"):
        script["main"]()
    assert not called
    monkeypatch.setattr("sys.argv", ["add_model.py", "folder", "--as", "mine_1.0"])
    script["main"]()
    assert called[0][1] == ROOT / "hub" / "models" / "mine_1.0"
