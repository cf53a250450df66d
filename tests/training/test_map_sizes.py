"""What cannot be trained because a map has one pixel, against what PyTorch itself says."""

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import timm_wsms  # noqa: F401  registers the names
import train_accelerate
from timm_wsms import cli_errors
from timm_wsms.errors import UserError
from timm_wsms.training.map_sizes import check_single_images, needs_float32
from timm_wsms.training.settings import Settings

CPU = torch.device("cpu")
MEAN = {"fusion": "mean", "pyramid": [1, 0.5]}
FEW = ["--data.train_limit", "12", "--data.test_limit", "4", "--data.input_size", "[3, 32, 32]", "--epochs", "1"]


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("test_resnet", {}, 32),
        ("test_resnet", {}, 64),
        ("test_efficientnet", {}, 32),
        ("test_efficientnet", {}, 64),
        ("test_vit", {"img_size": 32}, 32),
        ("wsms_test_resnet", {}, 64),
        ("wsms_test_resnet", MEAN, 64),
        ("wsms_test_resnet", MEAN, 128),
    ],
)
def test_a_single_image_is_refused_where_pytorch_would_refuse_it(name, kwargs, size):
    network = timm.create_model(name, num_classes=5, **kwargs).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        check_single_images(network, Settings(name), [(3, size, size)], num_processes=1)
        refused = False
    except UserError as error:
        assert f"3×{size}×{size} image at a time" in str(error) and "--batch_size" in str(error)
        refused = True
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    try:
        network.train()(torch.randn(1, 3, size, size))
        fails = False
    except ValueError as error:
        assert "more than 1 value per channel" in str(error)
        fails = True
    assert refused == fails


def test_norms_that_are_frozen_throughout_do_not_count():
    network = timm.create_model("test_resnet", num_classes=5)
    check_single_images(network, Settings("a", freeze="backbone"), [(3, 32, 32)], 1)
    with pytest.raises(UserError, match="one 3×32×32 image at a time"):
        check_single_images(network, Settings("a", freeze="backbone", freeze_epochs=1), [(3, 32, 32)], 1)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("batch", [["--batch_size", "1"], ["--batch_size", "2", "--grad_accumulation", "2"]])
def test_it_is_one_line_before_anything_is_written_and_the_next_run_is_not_in_its_way(tmp_path, capsys, dry, batch):
    single = ["--model", "test_resnet", *FEW, *batch, "--output", str(tmp_path / "run"), *dry]
    assert cli_errors.run(lambda: train_accelerate.main(single)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: test_resnet cannot be trained on one") and "lower --grad_accumulation" in line
    assert not (tmp_path / "run").exists()


def test_strided_convolutions_of_one_pixel_are_found():
    found = []
    for size in (32, 128):
        network = timm.create_model("wsms_test_resnet", num_classes=5, **MEAN)
        found.append(needs_float32(network, Settings("a", precision="bf16"), [(3, size, size)], CPU))
    # At 32 pixels stage 2 sees 16, of which one is left before the last layer halves them.
    assert "a strided convolution of a 1×1 map (stages.2.backbone.layer4.0.conv" in found[0]
    assert found[1] is None
    assert needs_float32(network, Settings("a"), [(3, 32, 32)], CPU) is None
    assert needs_float32(network, Settings("a", precision="bf16"), [(3, 32, 32)], torch.device("cuda")) is None


@pytest.mark.slow
def test_a_network_that_needs_float32_is_trained_in_it(tmp_path, capsys):
    arguments = ["--model", "wsms_test_resnet", "--model_kwargs.fusion", "mean", "--model_kwargs.pyramid", "[1, 0.5]"]
    arguments += [*FEW, "--batch_size", "4", "--stage_loss", "1"]
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        train_accelerate.main([*arguments, "--precision", precision, "--output", str(tmp_path / precision)])
    assert capsys.readouterr().out.count("warning: wsms_test_resnet is trained in float32") == 1
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("no", "bf16"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
