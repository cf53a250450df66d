"""One backbone for each of timm's model files, from a checkpoint: the same logits, bit for bit, in eval and train mode.

The smallest of a file by parameters, or one that its arguments make smaller still; on the smallest images it takes.
"""

import json
from pathlib import Path

import pytest
import timm
from torch import nn

import timm_wsms
from tests.helpers.checkpoints import checkpoint_of, images, logits_differ, start, trained

pytestmark = pytest.mark.slow  # full-size backbones

TABLE = json.loads((Path(timm_wsms.__file__).parent / "registry" / "stageable.json").read_text())
SMALL = {"depth": 3, "embed_dim": 96, "num_heads": 3}
SWIN = {"img_size": 128, "embed_dim": 24, "depths": (1, 1, 2, 1), "window_size": 4}
# backbone: (side of the images, arguments)
BACKBONES = {
    "beit_base_patch16_224": (64, {"img_size": 64, **SMALL}),
    "botnet26t_256": (256, {}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 3}),
    "coat_lite_tiny": (64, {"img_size": 64}),
    "convit_tiny": (64, {"img_size": 64, "depth": 3}),
    "convmixer_768_32": (64, {}),
    "cpubone_nano": (64, {}),
    "cs3darknet_focus_s": (64, {}),
    "csatv2": (256, {}),
    "cspnext_tiny": (64, {}),
    "davit_tiny": (64, {"depths": (1, 1, 1, 1)}),
    "deepseek_vit_412m": (56, {"img_size": 56, **SMALL}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "densenet100_k24_cifar": (32, {}),
    "densenet121": (64, {"block_config": (2, 2, 2, 2)}),
    "dla46x_c": (64, {}),
    "dpn48b": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (64, {"img_size": 64}),
    "efficientvim_m1": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (224, {}),
    "fasternet_t0": (64, {}),
    "fastvit_t8": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "gcvit_xxtiny": (128, {"img_size": 128}),
    "gemma4_vit_167m": (96, SMALL),
    "ghostnet_050": (64, {}),
    "hardcorenas_b": (64, {}),
    "hgnetv2_b0": (64, {}),
    "hiera_tiny_224": (224, {}),
    "hieradet_small": (128, {}),
    "hrnet_w18_small": (64, {}),
    "iformer_t": (64, {}),
    "inception_next_atto": (64, {}),
    "inception_resnet_v2": (128, {}),
    "inception_v3": (128, {}),
    "inception_v4": (128, {}),
    "lcnetv2_small": (64, {}),
    "legacy_seresnet18": (64, {}),
    "legacy_xception": (64, {}),
    "levit_128s": (64, {"img_size": 64}),
    "lowformer_b0": (64, {}),
    "mixer_s32_224": (224, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv5_base": (64, {"channel_multiplier": 0.1}),
    "mobilevit_xxs": (64, {}),
    "mvitv2_tiny": (128, {"img_size": 128}),
    "naflexvit_base_patch16_gap": (64, SMALL),
    "nasnetalarge": (331, {}),
    "nest_tiny": (224, {}),
    "nextvit_small": (128, {}),
    "pit_ti_224": (64, {"img_size": 64}),
    "pnasnet5large": (331, {}),
    "poolformer_s12": (64, {}),
    "pvt_v2_b0": (128, {}),
    "qwen3_vit_306m": (64, SMALL),
    "rdnet_tiny": (64, {}),
    "regnetx_002": (64, {}),
    "repghostnet_050": (64, {}),
    "repvit_m0_9": (64, {}),
    "res2net50_48w_2s": (64, {}),
    "resnest14d": (64, {}),
    "resnet20_cifar": (32, {}),
    "resnet50_avgpool": (64, {}),
    "resnetv2_18": (64, {}),
    "rexnet_100": (64, {}),
    "samvit_base_patch16_224": (64, {"img_size": 64, "global_attn_indexes": (2,), **SMALL}),
    "selecsls42": (64, {}),
    "sequencer2d_s": (224, {"layers": (1, 1, 1, 1)}),
    "shvit_s1": (64, {}),
    "skresnet18": (64, {}),
    "starnet_s050": (64, {}),
    "swiftformer_xs": (64, {}),
    "swin_tiny_patch4_window7_224": (128, SWIN),
    "swinv2_cr_tiny_224": (128, {**SWIN, "window_size": None}),
    "swinv2_tiny_window8_256": (128, SWIN),
    "test_byobnet": (64, {}),
    "test_coatnet": (64, {"img_size": 64}),
    "test_convnext": (64, {}),
    "test_efficientnet": (64, {}),
    "test_mambaout": (64, {}),
    "test_nfnet": (64, {}),
    "test_resnet": (64, {}),
    "test_vit": (64, {"img_size": 64}),
    "tiny_vit_5m_224": (224, {}),
    "tnt_s_legacy_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "tresnet_m": (64, {}),
    "twins_pcpvt_small": (224, {"depths": (1, 1, 1, 1)}),
    "vgg11": (64, {"mlp_ratio": 0.05}),
    "visformer_tiny": (224, {}),
    "vit_relpos_small_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "vit_tiny_patch16_dinov3_qkvb": (64, {"img_size": 64, "depth": 3}),
    "vit_tiny_r_s16_p8_224": (64, {"img_size": 64, "depth": 3}),
    "vitamin_small_224": (64, {"img_size": 64}),
    "volo_d1_224": (224, {}),
    "vovnet39a": (64, {}),
    "xception41": (64, {}),
    "xcit_nano_12_p16_224": (64, {"depth": 3}),
}
# test_all_backbones.py starts one of every file from a checkpoint too; these are the kinds, and `make sweep` has all
QUICK = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "mobilenetv3_small_050", "densenet121")


def file_of(name):
    return timm.model_entrypoint(name).__module__


def test_every_model_file_is_among_them():
    files = {file_of(name) for name in TABLE["stageable"] if timm.is_model(name)}
    assert files == {file_of(name) for name in BACKBONES}
    assert len(BACKBONES) == len(files)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.sweep]) for name in BACKBONES]
)
def test_logits_of_the_backbone_bit_for_bit(name, tmp_path):
    side, kwargs = BACKBONES[name]
    overlay = {**checkpoint_of(trained(name, num_classes=7, **kwargs), tmp_path), "num_classes": 7}
    backbone = start(name, overlay, **kwargs)
    ours = {"residual": True} if hasattr(backbone, "wsms_defaults") else {}  # the paper's own have none by default
    model = start(f"wsms_{name}", overlay, **kwargs, **ours)
    assert (model.integration.gamma == 0).all()
    for number, stage in model.stages.items():
        for path, module in stage.backbone.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for key, tensor in model.backbone.get_submodule(path).state_dict().items():
                    assert (module.state_dict()[key] == tensor).all(), (number, path, key)
    x = images(side=side, batch=2)
    assert logits_differ(model, backbone, False, x) == 0
    if not getattr(backbone, "drop_rate", 0.0):  # dropout in the head draws other numbers
        assert logits_differ(model, backbone, True, x) == 0
