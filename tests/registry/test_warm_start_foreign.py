"""Checkpoints in the forms their authors published, which timm's filters bring into its own, start a network too."""

import numpy as np
import pytest
import torch

from tests.helpers.checkpoints import images, logits_differ, start, trained, write

VIT = {"img_size": 64}
SWIN = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1), "window_size": 4}
EVA = {"img_size": 64, "depth": 3, "embed_dim": 96, "num_heads": 3}


def both(name, overlay, side=64, **kwargs):
    """The network and the backbone from the same file: the same logits. Gives both, for what else they must show."""
    model, backbone = start(f"wsms_{name}", overlay, **kwargs), start(name, overlay, **kwargs)
    for training in (False, True):
        assert logits_differ(model, backbone, training, images(side=side)) == 0
    return model, backbone


def renamed(state_dict, *pairs):
    """The same tensors under names in which, in this order, one string stands for another."""
    result = {}
    for key, tensor in state_dict.items():
        for old, new in pairs:
            key = key.replace(old, new)
        result[key] = tensor
    return result


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "state_dict_ema"])
def test_wrapped_pth(wrapper, tmp_path):
    source = trained("test_resnet")
    content = {wrapper: {f"module.{key}": tensor for key, tensor in source.state_dict().items()}, "epoch": 3}
    model, _ = both("test_resnet", write(content, tmp_path / "weights.pth"))
    assert logits_differ(model, source, False, images()) == 0


def test_vit_as_openai_clip(tmp_path):
    source = trained("vit_tiny_patch16_224", depth=3, pre_norm=True, **VIT, num_classes=8)
    with torch.no_grad():
        source.head.bias.zero_()  # CLIP has none
    state = source.state_dict()
    own = {
        "class_embedding": state.pop("cls_token")[0, 0],
        "positional_embedding": state.pop("pos_embed")[0],
        "proj": state.pop("head.weight").T,
    }
    del state["head.bias"]
    names = renamed(
        state, ("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"),
        ("norm1", "ln_1"), ("norm2", "ln_2"), ("norm.", "ln_post."), ("qkv.", "in_proj_"),
        ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    )  # fmt: skip
    clip = {f"visual.{key}": tensor for key, tensor in (names | own).items()} | {"logit_scale": torch.ones(())}
    overlay = {**write(clip, tmp_path / "clip.safetensors"), "num_classes": 8}
    model, _ = both("vit_tiny_patch16_224", overlay, depth=3, pre_norm=True, **VIT)
    assert logits_differ(model, source, False, images()) == 0


def test_vit_of_open_clip(tmp_path):
    source = trained("test_vit", **VIT)
    state = {f"visual.trunk.{key}": tensor for key, tensor in source.state_dict().items()} | {
        "logit_scale": torch.ones(())
    }
    model, _ = both("test_vit", write(state, tmp_path / "weights.safetensors"), **VIT)
    assert logits_differ(model, source, False, images()) == 0


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_with_a_mask_token_and_another_size(registers, tmp_path):
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    kwargs = {"depth": 3, "embed_dim": 96, "num_heads": 3}
    state = trained(name, img_size=112, **kwargs).state_dict()
    state["mask_token"] = torch.rand(1, 96)
    if registers:  # the class token has a position of its own
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat((torch.rand(1, 1, 96), state["pos_embed"]), 1)
    overlay = write(state, tmp_path / "weights.safetensors")
    model, _ = both(name, overlay, side=56, img_size=56, **kwargs)
    assert model.backbone.pos_embed.shape[1] == 4 * 4 + (not registers)


def test_swin_with_index_tables_and_another_window(tmp_path):
    source = trained("swin_tiny_patch4_window7_224", **SWIN | {"img_size": 128, "window_size": 8})
    state = source.state_dict()
    for key, module in source.named_modules():
        if hasattr(module, "relative_position_index"):
            state[f"{key}.relative_position_index"] = module.relative_position_index
            state[key.replace("attn", "attn_mask")] = torch.zeros(4, 64, 64)
    names = {}
    for key, tensor in state.items():  # the original downsamples at the end of a stage, and its head has no `fc`
        parts = key.split(".")
        if parts[2:3] == ["downsample"]:
            key = ".".join((parts[0], str(int(parts[1]) - 1), *parts[2:]))
        names[key.replace("head.fc.", "head.")] = tensor
    overlay = write({"model": names}, tmp_path / "weights.pth")
    model, _ = both("swin_tiny_patch4_window7_224", overlay, **SWIN)
    bias = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert source.get_parameter(bias).shape[0] == 15**2 and model.backbone.get_parameter(bias).shape[0] == 7**2


def test_swinv2_with_index_tables(tmp_path):
    kwargs = SWIN | {"window_size": 2}
    source = trained("swinv2_tiny_window8_256", **kwargs)
    state = source.state_dict()
    state |= {key: buffer for key, buffer in source.named_buffers() if "relative_" in key or "attn_mask" in key}
    assert any("relative_coords_table" in key for key in state)
    model, _ = both("swinv2_tiny_window8_256", write({"model": state}, tmp_path / "weights.pth"), **kwargs)
    assert logits_differ(model, source, False, images()) == 0


def test_convnext_as_facebook_published_it(tmp_path):
    source = trained("test_convnext", head_init_scale=1.0)
    names = renamed(source.state_dict(), ("stem.", "downsample_layers.0."), ("head.norm", "norm"), ("head.fc", "head"),
                    (".blocks.", "."), ("conv_dw", "dwconv"), ("mlp.fc", "pwconv"))  # fmt: skip
    names = {
        f"downsample_layers.{key.split('.')[1]}.{key.split('.', 3)[3]}" if ".downsample." in key else key: tensor
        for key, tensor in names.items()
    }
    assert {"downsample_layers.1.0.weight", "stages.0.0.dwconv.weight", "norm.weight"} <= names.keys()
    model, _ = both("test_convnext", write({"model": names}, tmp_path / "weights.pth"))
    assert logits_differ(model, source, False, images()) == 0


def test_convnext_without_a_head_by_its_tag(tmp_path):
    source = trained("convnextv2_atto", num_classes=0, depths=(1, 1, 1, 1))
    state = {key: tensor for key, tensor in source.state_dict().items() if not key.startswith("head.")}
    overlay = write(state, tmp_path / "weights.safetensors")
    kwargs = {"depths": (1, 1, 1, 1)}
    model, backbone = both("convnextv2_atto.fcmae", overlay, **kwargs)
    assert model.num_classes == backbone.num_classes == 0


def test_eva_with_a_mask_token_of_open_clip_at_another_size(tmp_path):
    state = trained("eva02_tiny_patch14_224", **EVA | {"img_size": 112}).state_dict()
    state = {f"visual.{key}": tensor for key, tensor in state.items()} | {"visual.mask_token": torch.rand(1, 1, 96)}
    kwargs = EVA | {"img_size": 56}
    model, _ = both("eva02_tiny_patch14_224", write(state, tmp_path / "weights.safetensors"), side=56, **kwargs)
    assert model.backbone.pos_embed.shape[1] == 4 * 4 + 1


def test_beit_with_index_tables_at_another_size(tmp_path):
    source = trained("beit_base_patch16_224", **EVA | {"img_size": 128})
    state = source.state_dict()
    for key, module in source.named_modules():
        if hasattr(module, "relative_position_index"):
            state[f"{key}.relative_position_index"] = module.relative_position_index
    overlay = write({"model": {"module": state}}, tmp_path / "weights.pth")
    model, _ = both("beit_base_patch16_224", overlay, **EVA)
    bias = "blocks.0.attn.relative_position_bias_table"
    assert model.backbone.get_parameter(bias).shape[0] == 7**2 + 3 < source.get_parameter(bias).shape[0]


@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050"])
def test_a_background_class_before_the_others(name, tmp_path):
    state = trained(name, num_classes=11).state_dict()
    overlay = {**write(state, tmp_path / "weights.safetensors"), "num_classes": 10, "label_offset": 1}
    model, backbone = start(f"wsms_{name}", overlay), start(name, overlay)
    assert logits_differ(model, backbone, False, images()) == 0
    assert torch.equal(model.get_classifier().weight, state["classifier.weight"][1:])


@pytest.mark.slow
def test_bit_as_google_published_it(tmp_path):
    """A NumPy archive, read by the backbone's own `load_pretrained`."""
    source = trained("resnetv2_50x1_bit")
    arrays = {}
    for key, tensor in source.state_dict().items():
        array = tensor.numpy()
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        arrays[jax_name(key)] = array
    np.savez(tmp_path / "weights.npz", **arrays)
    overlay = {"file": str(tmp_path / "weights.npz"), "custom_load": True, "num_classes": 1000}
    model, _ = both("resnetv2_50x1_bit", overlay)
    assert logits_differ(model, source, False, images()) == 0


def jax_name(key):
    """timm's name of a tensor of ResNetV2 → its name in a BiT archive."""
    for timm_name, name in (("stem.conv.weight", "root_block/standardized_conv2d/kernel"),
                            ("norm.weight", "group_norm/gamma"), ("norm.bias", "group_norm/beta"),
                            ("head.fc.weight", "head/conv2d/kernel"),
                            ("head.fc.bias", "head/conv2d/bias")):  # fmt: skip
        if key == timm_name:
            return f"resnet/{name}"
    _, stage, _, block, *rest = key.split(".")
    unit = f"resnet/block{int(stage) + 1}/unit{int(block) + 1:02d}/"
    if rest[0] == "downsample":
        return f"{unit}a/proj/standardized_conv2d/kernel"
    letter = "abc"[int(rest[0][-1]) - 1]
    kind = {"conv": "standardized_conv2d/kernel", "norm": f"group_norm/{'gamma' if rest[1] == 'weight' else 'beta'}"}
    return f"{unit}{letter}/{kind[rest[0][:-1]]}"
