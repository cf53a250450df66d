"""The mean form against what it says it is: plain backbones, each run on the image at another size, averaged."""

import copy
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import timm_wsms
from tests.helpers.checkpoints import checkpoint_of, run, start, trained
from tests.helpers.networks import EXACT, gradients, images, randomize, sharing
from tests.helpers.resampling import mean_of_blocks, triangles
from timm_wsms import UserError, WsmsMeanNet, WsmsNet
from timm_wsms.network.pyramid import make_pyramid

torch.set_num_threads(1)
SWIN = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4, "drop_path_rate": 0.0}
LEVIT = {"embed_dim": (16, 32, 48), "depth": (1, 1, 1)}
HALVED = [1, 0.5, 0.25]
NETWORKS = {  # case: backbone, its arguments, pyramid (None: the default), sides of the images of fixed size
    "CNN": ("test_resnet", {}, None, ()),
    "larger images too": ("test_resnet", {}, [2, 1, 0.5], ()),
    "odd factors": ("test_convnext", {}, [0.7, 1], ()),
    "norms a stage": ("test_convnext", {"unshared_norms": "all"}, [1, 0.5], ()),
    "nothing of its own": ("test_resnet", {"unshared_norms": "none"}, None, ()),
    "statistics of its own": ("test_resnet", {"unshared_norms": "statistics"}, None, ()),
    "statistics in the head": ("levit_128s", {**LEVIT, "unshared_norms": "statistics"}, [1, 0.5], (224, 112)),
    "pre-activation": ("densenet100_k24_cifar", {"depth": 10}, None, ()),
    "head with layers": ("mobilenetv3_small_050", {}, None, ()),
    "head with norms": ("levit_128s", LEVIT, [1, 0.5], (224, 112)),
    "NHWC": ("test_mambaout", {}, None, ()),
    "the paper's": ("resnet20_cifar", {}, None, ()),
    "tokens": ("test_vit", {"img_size": 64}, None, (64, 32, 16)),
    "tokens, padded": ("test_vit", {"img_size": 96}, [1.5, 1, 0.6], (96, 144, 64)),  # 57.6 pixels are 57, of 64
    "windows": ("swin_tiny_patch4_window7_224", {"img_size": 64, **SWIN}, [1, 0.5, 2], (64, 32, 128)),
    "windows of odd maps": ("swin_tiny_patch4_window7_224", {"img_size": 96, **SWIN}, [1, 0.5], (96, 48)),
    "nothing shared": ("test_resnet", {"share_weights": False}, None, ()),
}
each_network = pytest.mark.parametrize("case", NETWORKS)


def network(case, **kwargs):
    name, arguments, pyramid, _ = NETWORKS[case]
    torch.manual_seed(0)
    pyramid = {} if pyramid is None else {"pyramid": pyramid}
    model = timm.create_model(f"wsms_{name}", fusion="mean", num_classes=5, **pyramid, **arguments, **kwargs).double()
    return randomize(model)


def image_of(case):
    sides = NETWORKS[case][3]
    return images(side=sides[0] if sides else 64, dtype=torch.float64)


def resized(x, factor):
    if factor in HALVED:
        return mean_of_blocks(x, int(1 / factor))
    height, width = (int(side * factor) for side in x.shape[-2:])
    return triangles(x.shape[-2], height) @ x @ triangles(x.shape[-1], width).T


def by_hand(values, case, x, training):
    """Logits of plain backbones built for each size, with the values of the network's state dict; averaged."""
    return stages_by_hand(values, case, x, training).mean(0)


def stages_by_hand(values, case, x, training):
    """Logits of each of them (stages, b, classes)."""
    name, arguments, pyramid, sides = NETWORKS[case]
    arguments = {key: value for key, value in arguments.items() if key not in ("unshared_norms", "share_weights")}
    found = []
    for number, factor in enumerate(sorted(pyramid or HALVED, key=lambda factor: factor != 1)):
        if sides:
            arguments["img_size"] = sides[number]
        plain = timm.create_model(name, num_classes=5, **arguments).double().train(training)
        image = resized(x, factor)
        if sides:
            image = F.pad(image, (0, sides[number] - image.shape[-1], 0, sides[number] - image.shape[-2]))
        own = {
            key: values.get(f"stages.{number + 1}.backbone.{key}", values[f"backbone.{key}"])
            for key in plain.state_dict()
        }
        torch.manual_seed(number)
        found.append(functional_call(plain, own, image))
    return torch.stack(found)


@pytest.mark.parametrize("training", [True, False])
@each_network
def test_logits_and_gradients_are_those_of_plain_backbones_with_tied_values(case, training):
    model = network(case, **({"drop_rate": 0.0} if training else {})).train(training)
    values = {key: value.clone() for key, value in model.state_dict().items()}
    for key, _ in model.named_parameters():
        values[key].requires_grad_()
    found, expected = model(image_of(case)), by_hand(values, case, image_of(case), training)
    assert found.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    F.cross_entropy(found, torch.tensor([1, 3])).backward()
    F.cross_entropy(expected, torch.tensor([1, 3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.any() == values[key].grad.any(), key
        torch.testing.assert_close(parameter.grad, values[key].grad, rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize("case", ["CNN", "larger images too", "tokens", "head with norms"])
def test_in_stagewise_training_the_logits_of_every_stage_come_out(case):
    model, x = network(case, drop_rate=0.0), image_of(case)
    model.set_stagewise_training()
    for training in (True, False):
        values = {key: value.clone() for key, value in model.state_dict().items()}
        expected = stages_by_hand(values, case, x, training)
        found = model.train(training)(x)
        found = found.logits if training else found
        torch.testing.assert_close(found, expected if training else expected.mean(0), rtol=1e-9, atol=1e-9)
    model.set_stagewise_training(False)
    values = {key: value.clone() for key, value in model.state_dict().items()}
    torch.testing.assert_close(model.train()(x), by_hand(values, case, x, True), rtol=1e-9, atol=1e-9)


def test_what_stands_in_the_state_dict():
    """All that the backbone has under its names, and each stage's own: norms, in the head too."""
    model = network("head with norms")
    state = model.state_dict()
    own = {key.removeprefix("backbone.") for key in state if key.startswith("backbone.")}
    assert own == set(model.backbone.state_dict())
    rest = {key.removeprefix("stages.2.backbone.") for key in state if not key.startswith("backbone.")}
    norms = {path for path, module in model.backbone.named_modules() if "running_var" in module._buffers}
    assert "head.bn" in norms
    tables = {key for key in own if key.endswith("attention_biases")}  # one for each offset, of which there are fewer
    assert rest == tables | {key for key in own if key.rpartition(".")[0] in norms}
    assert model.stages["2"].backbone.head.linear.weight is model.backbone.head.linear.weight


def test_which_form_a_name_gives():
    plain, mean = (timm.create_model("wsms_test_resnet", **kwargs) for kwargs in ({}, {"fusion": "mean"}))
    assert type(plain) is WsmsNet and type(mean) is WsmsMeanNet
    same = timm.create_model("wsms_test_resnet", fusion="concat", pyramid=[1, 0.5])
    assert type(same) is WsmsNet and len(same.stages) == 1
    one = timm.create_model("wsms_test_resnet", fusion="mean", pyramid=[1]).eval()
    torch.testing.assert_close(one(images()), one.backbone(images()), **EXACT)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"fusion": "max"}, "fusion must be one of concat, mean; not 'max'"),
        ({"fusion": 1}, "fusion must be str, not 1"),
        ({"pyramid": 0.5}, "pyramid must be list, not 0.5"),
        ({"pyramid": [2, 0.5]}, "pyramid must hold 1 once"),
        ({"residual": False, "integration": "none"}, "integrates no maps; leave out integration, residual"),
        ({"integration_channels": 8}, "integrates no maps; leave out integration_channels"),
        ({"unshared_norms": "layer"}, "unshared_norms must be one of batch, statistics, all, none"),
        ({"fusion": "concat", "pyramid": [2, 1]}, "its pyramid is 1, 0.5, 0.25 …, not [2, 1]; leave out pyramid, or"),
        ({"pyramid": [1, 0.5], "stages": 3}, "a pyramid of 2 factors makes as many stages, not 3; leave out stages"),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    with pytest.raises(UserError) as caught:
        timm.create_model("wsms_test_resnet", **{"fusion": "mean", **arguments})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_backbones_and_images_of_sizes_that_do_not_fit():
    with torch.device("meta"), pytest.raises(UserError, match="EfficientFormer takes images of one size only"):
        timm.create_model("wsms_efficientformer_l1", fusion="mean")
    model = timm.create_model("wsms_test_convnext", fusion="mean").eval()
    with pytest.raises(RuntimeError, match="channels") as caught:  # something else than the size
        model(torch.zeros(1, 1, 128, 128))
    assert not isinstance(caught.value, UserError)


# ---- the head


@pytest.mark.parametrize("case", ["CNN", "head with layers", "tokens", "head with norms", "statistics in the head"])
@torch.no_grad()
def test_reset_classifier(case):
    model, x = network(case).eval(), image_of(case)
    before = sharing(model)
    features = model.stage_features(x)
    heads = [model.backbone.forward_head, *(stage.backbone.forward_head for stage in model.stages.values())]
    pre_logits = sum(head(own, pre_logits=True) for head, own in zip(heads, features, strict=True)) / len(heads)
    torch.testing.assert_close(sum(model.stage_heads(features, pre_logits=True)) / len(heads), pre_logits)
    assert pre_logits.shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    randomize(model.double(), seed=3)
    features = model.stage_features(x)
    logits = sum(head(own) for head, own in zip(heads, features, strict=True)) / len(heads)
    assert model.num_classes == 7 and logits.shape == (2, 7)
    torch.testing.assert_close(model(x), logits)
    assert sharing(model) == before  # a norm in the head is each stage's own, as before
    model.reset_classifier(0)
    assert model.num_classes == 0
    expected = sum(head(own) for head, own in zip(heads, features, strict=True)) / len(heads)
    torch.testing.assert_close(model(x), expected)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.backbone.forward_head(model.forward_features(x)), **EXACT)


def test_without_shared_weights_every_stage_gets_a_classifier_of_its_own():
    model = network("nothing shared")
    model.reset_classifier(3)
    weights = [model.get_classifier().weight, *(stage.backbone.fc.weight for stage in model.stages.values())]
    assert len({weight.data_ptr() for weight in weights}) == 3 and model.double().eval()(image_of("CNN")).shape == (
        2,
        3,
    )


@torch.no_grad()
def test_dropout_draws_for_every_stage_anew():
    model = timm.create_model("wsms_test_resnet", fusion="mean", stages=2, num_classes=0, drop_rate=0.5).train()
    ones = torch.ones(2, 96, 4, 4)
    found = sum(model.stage_heads([ones, ones])) / 2  # each stage's 0 or 2
    counts = [(found == value).double().mean().item() for value in (0, 1, 2)]
    assert sum(counts) == 1 and 0.3 < counts[1] < 0.7 and min(counts) > 0.1


# ---- weights of a backbone


@pytest.mark.parametrize("name", ["wsms_test_resnet", "wsms_mobilenetv3_small_050", "ms_test_resnet", "ms_test_vit"])
@pytest.mark.parametrize("pyramid", [[1, 0.5], [2, 1, 0.7]])
def test_from_a_backbones_weights_the_logits_are_the_mean_of_its_own(name, pyramid, tmp_path):
    """Bit for bit: of `ms_test_vit` timm resamples the positions, since each stage is loaded by itself."""
    plain_name = name.partition("_")[2]
    overlay = checkpoint_of(trained(plain_name), tmp_path)
    model = start(name, overlay, fusion="mean", pyramid=pyramid)
    x = images(160)
    expected = []
    for image in make_pyramid(x, [1, *(factor for factor in pyramid if factor != 1)]):
        fixed = {}
        if plain_name == "test_vit":
            padding = -image.shape[-1] % 16
            image = F.pad(image, (0, padding, 0, padding))
            fixed = {"img_size": image.shape[-1]}
        expected.append(run(start(plain_name, overlay, **fixed), False, image))
    found = run(model, False, x)
    assert found.std() > 0
    torch.testing.assert_close(found, torch.stack(expected).mean(0), **EXACT)


@pytest.mark.parametrize("case", ["CNN", "windows", "nothing shared", "the paper's"])
@torch.no_grad()
def test_a_backbones_state_dict_loads(case):
    model = network(case).eval()
    weights = randomize(copy.deepcopy(model.backbone), seed=5).state_dict()
    model.load_state_dict(weights)
    values = {f"backbone.{key}": value for key, value in weights.items()}
    tables = {key: value for key, value in model.state_dict().items() if "table" in key and key.startswith("stages")}
    expected = by_hand({**values, **tables}, case, image_of(case), False)
    torch.testing.assert_close(model(image_of(case)), expected, rtol=1e-9, atol=1e-9)


def test_checkpoint_folder_as_timm_writes_it(tmp_path):
    source = network("larger images too").float()
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"] == {**config["model_args"], "fusion": "mean", "pyramid": [2, 1, 0.5]}
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert type(model) is WsmsMeanNet
    assert torch.equal(run(model, False), run(source, False))


# ---- what is done to a network


@torch.no_grad()
def test_fused_for_inference():
    model = randomize(timm.create_model("wsms_test_resnet", fusion="mean", num_classes=5)).double().eval()
    fused = timm_wsms.fuse(model, image_of("CNN"))
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(fused(image_of("CNN")), model(image_of("CNN")), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_recalibrated_norms_have_the_statistics_of_their_own_images():
    model = network("head with norms")
    before = copy.deepcopy(model).eval()
    batches = [images(224, number=number, seed=number, dtype=torch.float64) for number in (3, 2)]
    kept = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    norms = [module for module in model.stages["2"].modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert timm_wsms.recalibrate(model, batches) == len(norms)
    part = before.stages["2"].backbone.train()
    part.drop_rate = 0
    seen = []
    part.head.bn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for x in batches:
        part(mean_of_blocks(x, 2))
    values = torch.cat(seen)
    found = model.stages["2"].backbone.head.bn
    torch.testing.assert_close(found.running_mean, values.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.running_var, values.var(0), rtol=1e-9, atol=1e-9)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, kept[key]), key


def test_the_gradient_of_activation_checkpointing():
    model = network("CNN").train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    expected = gradients(model, image_of("CNN"))
    for key, gradient in gradients(other, image_of("CNN")).items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-9, msg=key)
    for key, value in other.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], msg=key)


# ---- backbones that need more of an image than a pixel


@pytest.mark.sweep
@pytest.mark.parametrize(
    "name",
    ["bat_resnext26ts", "botnet26t_256", "coat_tiny", "coatnet_nano_rw_224", "dla34", "efficientformerv2_s0",
     "gcvit_xxtiny", "halonet26t", "hiera_tiny_224", "hrnet_w18_small", "inception_resnet_v2", "inception_v3",
     "inception_v4", "lambda_resnet26t", "levit_128s", "maxvit_tiny_rw_224", "mvitv2_tiny", "nest_tiny",
     "nextvit_small", "pit_ti_224", "pvt_v2_b0", "resnetaa50", "swiftformer_xs", "swin_s3_tiny_224",
     "swinv2_cr_tiny_224", "swinv2_tiny_window8_256", "twins_pcpvt_small", "twins_svt_small",
     "vit_tiny_patch16_224", "volo_d1_224"],
)  # fmt: skip
@pytest.mark.parametrize("pyramid", [[1, 0.5, 0.25], [2, 1, 0.7]])
def test_whole_at_every_size(name, pyramid):
    """Shapes alone, on PyTorch's meta device."""
    with torch.device("meta"):
        model = timm.create_model(f"wsms_{name}", fusion="mean", pyramid=pyramid)
        plain = timm.create_model(name)
        x = torch.zeros(2, *model.default_cfg["input_size"])
        logits = model.train()(x)
        assert logits.shape == (2, 1000)
        logits.sum().backward()
        plain.train()(x).sum().backward()
    unused = {key for key, parameter in plain.named_parameters() if parameter.grad is None}
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None or key.partition("backbone.")[2] in unused, key
