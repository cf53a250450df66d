"""Stage 1 of a trained network as a plain timm model: measured and written by the training script."""

from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file

import train_accelerate
from tests.helpers.networks import EXACT
from tests.helpers.training_runs import FEW, metrics
from timm_wsms import evaluation
from timm_wsms.data import DataSettings, load_splits
from timm_wsms.hub import results
from timm_wsms.hub.verify_folder import check_folder
from timm_wsms.training import report


@pytest.mark.slow
def test_the_script_measures_stage_1_and_writes_it_as_a_plain_timm_model(tmp_path, capsys, monkeypatch):
    predict, measured = evaluation.predict, []
    monkeypatch.setattr(
        evaluation, "predict", lambda model, *rest, **kw: measured.append(model) or predict(model, *rest, **kw)
    )
    output = tmp_path / "run"
    model = [*("--model", "wsmean_test_resnet"), *("--data.input_size", "[3, 32, 32]"), *("--stage_loss", "1")]
    train_accelerate.main([*model, *FEW, "--epochs", "2", "--ema_decay", "0.5", "--output", str(output)])
    printed = capsys.readouterr().out
    network = timm.create_model(f"local-dir:{output / 'model'}", pretrained=True).eval()
    plain = timm.create_model(f"local-dir:{output / 'model_backbone'}", pretrained=True).eval()
    assert type(plain).__module__.startswith("timm.models.")
    check_folder(output / "model_backbone")

    test = load_splits(DataSettings(test_limit=21), seed=0)[1]
    config = timm.data.resolve_model_data_config(plain)
    assert config["input_size"] == (3, 32, 32)
    pixels = torch.from_numpy(test.pixels).permute(0, 3, 1, 2) / 255
    images = (pixels - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    labels, sizes = torch.from_numpy(test.labels), torch.from_numpy(test.object_sizes)
    with torch.no_grad():
        logits = plain(images)
        torch.testing.assert_close(logits, network.stage_logits(images)[0], **EXACT)
        found = measured[-1].eval()(images)  # their accuracies may be the same by chance
        torch.testing.assert_close(found, logits, **EXACT)
        assert not torch.equal(found, network(images))
    right = (logits.argmax(1) == labels).double()
    said = metrics(output)[-1]["backbone"]
    assert said["test_top1"] == pytest.approx(100 * right.mean().item())
    in_top5 = (logits.topk(5).indices == labels[:, None]).any(1).double()
    assert said["test_top5"] == pytest.approx(100 * in_top5.mean().item())
    assert {int(size) for size in said["by_size"]} == {*sizes.tolist()}
    for size, accuracy in said["by_size"].items():
        assert accuracy == pytest.approx(100 * right[sizes == int(size)].mean().item())

    for folder in ("model", "model_backbone"):
        assert metrics(output / folder) == metrics(output)
        shown = load_file(output / folder / "test" / "tensors.safetensors")["input"]
        assert torch.equal(shown, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))  # no picture
    found = results.read(output / "model_backbone")
    assert [row.accuracy for row in found.rows] == [metrics(output)[-1]["test_top1"], said["test_top1"]]
    assert [row.model for row in results.read(output / "model").rows] == ["wsmean_test_resnet"]
    name = "stage 1 of wsmean_test_resnet"
    assert f"{name}: {said['test_top1']:.2f} % of 21 test images" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{name}  ")]
    assert f" {said['test_top1']:.2f} " in line
    # of the run's images, not of the 160 pixels that the architecture starts with: one table, so no column of sizes
    assert f" {evaluation.multiplications(plain, (3, 32, 32)) / 1e6:,.1f} M " in line and "image size" not in printed
    assert f"loads without timm_wsms: {output / 'model_backbone'}" in printed


def test_only_of_networks_that_average():
    for name in ("wsms_test_resnet", "test_resnet"):
        trainer = SimpleNamespace(final=timm.create_model(name), run=None)
        assert report.evaluate_stage1(trainer) is None
