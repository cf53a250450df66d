"""Starting from a backbone's checkpoint: the same logits, bit for bit; and a WSMS checkpoint as it is."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from tests.helpers.checkpoints import checkpoint_of, images, run, start, trained

NAMES = ["test_resnet", "test_efficientnet", "resnet18", "test_convnext", "mobilenetv3_small_050"]
SWIN = {"img_size": 128, "embed_dim": 24, "depths": (1, 1, 2, 1), "window_size": 4}


def check_norms_are_copies(model):
    """Of every stage's norms, all that the backbone's hold; and each has tensors of its own."""
    compared = 0
    for number, stage in model.stages.items():
        for path, module in stage.backbone.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                own = module.state_dict()
                for key, tensor in model.backbone.get_submodule(path).state_dict().items():
                    assert torch.equal(own[key], tensor), (number, path, key)
                    assert own[key].data_ptr() != tensor.data_ptr()
                    compared += 1
                assert own["num_batches_tracked"] == 17
    return compared


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_the_backbone_bit_for_bit(name, tmp_path):
    backbone = trained(name)
    model = start(f"wsms_{name}", checkpoint_of(backbone, tmp_path))
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(model.state_dict()[f"backbone.{key}"], tensor), key
    compared = check_norms_are_copies(model)
    assert (compared > 10) == any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert (model.integration.gamma == 0).all()
    assert torch.equal(run(model, False), run(backbone, False))
    if not model.backbone.drop_rate:
        assert torch.equal(run(model, True), run(backbone, True))


def test_in_train_mode_with_stochastic_depth(tmp_path):
    backbone = trained("test_resnet", drop_path_rate=0.5)
    model = start("wsms_test_resnet", checkpoint_of(backbone, tmp_path), drop_path_rate=0.5)
    found = run(model, True)
    assert torch.equal(found, run(backbone, True))
    torch.manual_seed(6)
    assert not torch.equal(model(images()), found)  # it does depend on the random numbers


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "swin_tiny_patch4_window7_224"])
def test_the_first_step_moves_gamma_and_then_everything_learns(name, optimizer, tmp_path):
    kwargs = {"num_classes": 3} | (SWIN if "swin" in name else {"img_size": 64} if "vit" in name else {})
    overlay = {**checkpoint_of(trained(name, **kwargs), tmp_path), "num_classes": 3}
    model = start(f"wsms_{name}", overlay, **kwargs).train()
    x, labels = images(side=kwargs.get("img_size", 64)), torch.tensor([0, 1, 2, 0])
    optimizer = optimizer(model.parameters(), lr=0.01)
    for step in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        moved = {key for key, parameter in model.named_parameters() if parameter.grad.abs().max() > 0}
        ours = {key for key, _ in model.named_parameters() if key.startswith(("stages.", "integration."))}
        if step == 0:
            assert moved & ours == {"integration.gamma"}
        optimizer.step()
    assert moved == {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "arguments", [{"num_classes": 7}, {"in_chans": 1}, {"in_chans": 4}, {"num_classes": 0}, {"stages": 2}]
)
def test_arguments_act_as_on_the_backbone(arguments, tmp_path):
    overlay = checkpoint_of(trained("test_resnet"), tmp_path)
    model = start("wsms_test_resnet", overlay, **arguments)
    arguments.pop("stages", None)
    x = images(arguments.get("in_chans", 3))
    backbone = start("test_resnet", overlay, **arguments)  # timm drops the classifier, sums the first convolution
    if arguments.get("num_classes"):
        backbone.fc.load_state_dict(model.backbone.fc.state_dict())  # a fresh one: each has drawn its own
    found = run(model, False, x)
    assert found.shape[1] == arguments.get("num_classes", 1000) or 96
    assert torch.equal(found, run(backbone, False, x))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_without_shared_weights_every_stage_starts_as_a_copy(name, tmp_path):
    overlay = checkpoint_of(backbone := trained(name), tmp_path)
    model = start(f"ms_{name}", overlay)
    for stage in model.stages.values():
        for key, tensor in stage.backbone.state_dict().items():
            assert torch.equal(tensor, backbone.state_dict()[key])
            assert tensor.data_ptr() != model.backbone.state_dict()[key].data_ptr()
    assert torch.equal(run(model, False), run(backbone, False))


def test_a_head_of_another_width_is_new_and_the_rest_starts_from_the_backbone(tmp_path):
    backbone = trained("test_resnet")
    model = start("wsms_test_resnet", checkpoint_of(backbone, tmp_path), integration="none", residual=False)
    for key, tensor in backbone.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(model.state_dict()[f"backbone.{key}"], tensor)
    with torch.no_grad():
        features = model.eval().forward_features(images())
        assert torch.equal(features[:, :96], backbone.eval().forward_features(images()))
        assert model(images()).shape == (4, 1000)


def test_architecture_follows_from_name_and_arguments_alone(tmp_path):
    overlay = checkpoint_of(trained("test_resnet"), tmp_path)
    for arguments in ({}, {"stages": 2}, {"integration": "conv3x3", "residual": False}):
        warm, cold = start("wsms_test_resnet", overlay, **arguments), timm.create_model("wsms_test_resnet", **arguments)
        assert str(warm) == str(cold)
        assert {k: v.shape for k, v in warm.state_dict().items()} == {k: v.shape for k, v in cold.state_dict().items()}
        if cold.integration.gamma is not None:
            assert (cold.integration.gamma == 1).all()


# ---- a WSMS checkpoint


def different(seed=3):
    torch.manual_seed(seed)
    model = timm.create_model("wsms_test_resnet", num_classes=5)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) / 4)
    return model


def test_a_wsms_checkpoint_loads_as_it_is(tmp_path):
    source = different()
    overlay = {**checkpoint_of(source, tmp_path), "num_classes": 5}
    model = start("wsms_test_resnet", overlay, num_classes=5)
    assert model.state_dict().keys() == source.state_dict().keys()
    for key, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert torch.equal(run(model, False), run(source, False))
    assert (model.integration.gamma != 0).all()


def test_a_wsms_checkpoint_with_another_number_of_classes(tmp_path):
    overlay = {**checkpoint_of(different(), tmp_path), "num_classes": 5}
    model = start("wsms_test_resnet", overlay, num_classes=2)
    assert model.get_classifier().out_features == 2
    assert torch.equal(model.eval().forward_features(images()), different().eval().forward_features(images()))


@pytest.mark.parametrize("arguments", [{}, {"stages": 2}, {"integration": "none", "residual": False}])
def test_checkpoint_folder_as_timm_writes_it(arguments, tmp_path):
    torch.manual_seed(3)
    source = timm.create_model("wsms_test_resnet", num_classes=5, **arguments)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "wsms_test_resnet" and config["num_classes"] == 5
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.state_dict().keys() == source.state_dict().keys() == load_file(tmp_path / "model.safetensors").keys()
    assert torch.equal(run(model, False), run(source, False))
    loaded, saved = (timm.data.resolve_data_config(model=one) for one in (model, source))
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in loaded.items()} == saved  # JSON knows lists only
