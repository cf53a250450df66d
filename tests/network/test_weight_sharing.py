"""What stages share: all but the unshared norms and the tables whose size is that of the image."""

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.networks import images, tensors
from timm_wsms.network.ties import duplicate_keys
from timm_wsms.network.weight_sharing import SkipInit, build_sharing, copy_sharing

torch.set_num_threads(1)
NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def build(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs)


# ---- backbones that take images of any size

UNSHARED = {  # kind of norm that a backbone has: unshared_norms for which each stage has its own
    "test_resnet": ["batch", "all"],  # BatchNorm2d
    "test_efficientnet": ["batch", "all"],  # BatchNormAct2d
    "test_convnext": ["all"],  # LayerNorm, LayerNorm2d
    "test_efficientnet_gn": ["all"],  # GroupNormAct
    "test_efficientnet_ln": ["all"],  # LayerNormAct2d
    "convnext_zepto_rms": ["all"],  # SimpleNorm2d
    "test_efficientnet_evos": ["all"],  # EvoNorm2dS0
}


@pytest.mark.parametrize("unshared_norms", ["batch", "statistics", "all", "none"])
@pytest.mark.parametrize("name", UNSHARED)
def test_all_but_the_unshared_norms_is_shared(name, unshared_norms):
    backbone = build(name)
    copied = copy_sharing(backbone, unshared_norms)
    original, other = tensors(backbone), tensors(copied)
    assert original.keys() == other.keys()
    own = set()
    for key, tensor in other.items():
        torch.testing.assert_close(tensor, original[key], rtol=0, atol=0)  # a norm starts as a copy
        if tensor is original[key]:
            continue
        assert tensor.data_ptr() != original[key].data_ptr() or not tensor.numel()
        own.add(key)
    norms = {
        f"{path}.{key}"
        for path, module in backbone.named_modules()
        if isinstance(module, NORMS) or "norm" in type(module).__name__.lower()
        for key in [*module._parameters, *module._buffers]
        if f"{path}.{key}" in original
    }
    assert norms
    if unshared_norms == "statistics":
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert own == {key for key in original if key.endswith(statistics)}
    else:
        assert own == (norms if unshared_norms in UNSHARED[name] else set())


def test_modules_are_copies_that_hold_the_same_tensors():
    backbone = build("test_resnet")
    copied = copy_sharing(backbone, "batch")
    assert not {id(module) for module in backbone.modules()} & {id(module) for module in copied.modules()}
    own, other = backbone.layer1[0].conv1, copied.layer1[0].conv1
    assert other.weight is own.weight and other._parameters is not own._parameters


def test_network_shares_what_its_stages_have_in_common():
    model = build("wsms_test_resnet")
    own = tensors(model.backbone)
    for stage in model.stages.values():
        for path, module in stage.backbone.named_modules():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                shared = tensor is own.get(f"{path}.{key}")
                assert tensor is None or shared != isinstance(module, nn.BatchNorm2d), (path, key)
    second, third = tensors(model.stages["2"].backbone), tensors(model.stages["3"].backbone)
    assert third.keys() < second.keys()
    for key in third:  # and no two stages have one norm
        assert (third[key] is second[key]) == (own[key] is second[key])


@pytest.mark.parametrize("prefix, arguments", [("ms_", {}), ("wsms_", {"share_weights": False})])
def test_without_shared_weights_nothing_is_shared(prefix, arguments):
    model = build(f"{prefix}test_resnet", **arguments)
    every = tensors(model)
    assert len({id(tensor) for tensor in every.values()}) == len(every)
    assert len({tensor.untyped_storage().data_ptr() for tensor in every.values()}) == len(every)
    assert model.state_dict().keys() == every.keys()
    compared = 0
    for number in ("2", "3"):
        for key, weight in model.stages[number].backbone.named_parameters():
            if weight.ndim == 4:  # norms start alike
                compared += 1
                assert (weight != model.backbone.get_parameter(key)).float().mean() > 0.99
    assert compared > 10
    with torch.no_grad():
        a, b = (
            model.stages["2"](images(), torch.zeros(2, 1, 4, 4)),
            model.backbone.forward_intermediates(images(), [3])[1][0],
        )
    assert (a - b).abs().max() > 1e-3


# ---- backbones of a fixed image size

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SIZED = {  # name: arguments, the two sides in pixels, where a tensor's shape depends on them
    "swin_tiny_patch4_window7_224": (
        {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)},
        (224, 112),
        ("relative_position",),
    ),
    "beit_base_patch16_224": (SMALL, (96, 48), ("relative_position",)),
    "eva02_tiny_patch14_224": (SMALL, (112, 56), ("pos_embed",)),
    "test_vit": ({}, (160, 80), ("pos_embed",)),
    "test_maxvit": ({}, (160, 64), ("rel_pos", "relative_position")),
    "test_vit_relpos": ({}, (160, 80), ()),
    "swinv2_tiny_window8_256": (
        {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)},
        (256, 128),
        (),  # its buffers alone depend on the size
    ),
    "levit_128s": ({}, (224, 112), ("attention_bias",)),
    "resmlp_12_224": ({}, (224, 112), ("linear_tokens",)),
}


def filled(name, side):
    """The backbone for one size, with values that no default would hide."""
    model = build(name, img_size=side, num_classes=5, **SIZED[name][0])
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not key.endswith("running_var") and key in model.state_dict():
                tensor.copy_(torch.randn_like(tensor) / 8 + (tensor.ndim == 1))
    return model.eval()


@pytest.mark.parametrize("unshared_norms", ["batch", "all"])
@pytest.mark.parametrize("name", SIZED)
def test_for_another_image_size(name, unshared_norms):
    """Against a backbone that timm built for that size."""
    arguments, (side, smaller), kinds = SIZED[name]
    backbone = filled(name, side)
    plain = build(name, img_size=smaller, num_classes=5, **arguments).eval()
    found = build_sharing(lambda: timm.create_model(name, img_size=smaller, num_classes=5, **arguments), backbone,
                          unshared_norms).eval()  # fmt: skip
    own, expected = tensors(backbone), tensors(plain)
    norms = (nn.BatchNorm2d, nn.BatchNorm1d) if unshared_norms == "batch" else (*NORMS, nn.BatchNorm1d)
    unshared = {path for path, module in backbone.named_modules() if isinstance(module, norms)}
    assert tensors(found).keys() == expected.keys() == own.keys()
    resized = 0
    for key, tensor in tensors(found).items():
        assert not tensor.is_meta and tensor.shape == expected[key].shape, key
        assert tensor.dtype == expected[key].dtype and tensor.requires_grad == expected[key].requires_grad
        if key not in plain.state_dict():
            torch.testing.assert_close(
                tensor, expected[key], rtol=0, atol=0, msg=key
            )  # a table of indices and the like
        elif tensor.shape != own[key].shape:
            resized += 1
            assert any(kind in key for kind in kinds), key
            assert tensor.is_contiguous() and tensor.isfinite().all()
        elif key.rpartition(".")[0] in unshared:
            assert tensor is not own[key]
            torch.testing.assert_close(tensor, own[key], rtol=0, atol=0)
        elif isinstance(own[key], nn.Parameter):
            assert tensor is own[key], key
    assert bool(resized) == bool(kinds)
    plain.load_state_dict(found.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(found(images(smaller)), plain(images(smaller)), rtol=0, atol=0)


def test_another_image_size_draws_no_random_numbers_of_the_first():
    """Shapes alone are built: what a seed gives the backbone does not depend on the stages."""
    backbone = build("test_vit")
    before = [tensor.clone() for tensor in tensors(backbone).values()]
    build_sharing(lambda: timm.create_model("test_vit", img_size=80), backbone, "batch")
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors(backbone).values(), before, strict=True))


# ---- tying again what an operation has parted


class Mixed(nn.Module):
    """One tensor that is shared, one that is not, one buffer that is."""

    def __init__(self):
        super().__init__()
        self.shared, self.own = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(3))
        self.register_buffer("table", torch.arange(4))


def test_keys_of_shared_tensors():
    backbone = nn.ModuleDict({"deep": Mixed()})
    stages = nn.ModuleDict({"2": nn.ModuleDict({"deep": Mixed()}), "3": nn.ModuleDict({"deep": Mixed()})})
    for stage in stages.values():
        stage["deep"].shared = backbone["deep"].shared
        stage["deep"].table = backbone["deep"].table
    model = nn.ModuleDict({"backbone": backbone, "stages": stages})
    keys = duplicate_keys(model)
    assert sorted(keys) == sorted(
        (f"stages.{number}.deep.{name}", f"backbone.deep.{name}") for number in "23" for name in ("shared", "table")
    )


def groups(model):
    """Which names stand for one tensor."""
    found = {}
    for name, tensor in tensors(model).items():
        found.setdefault(id(tensor), set()).add(name)
    return sorted(sorted(group) for group in found.values())


def to_swapped(model):
    """An operation that puts a new parameter in place of each old one, as `.to` does under this switch."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize(
    "operation",
    [
        lambda model: model.to("meta"),
        lambda model: model.to("meta").to_empty(device="cpu"),
        to_swapped,
        lambda model: model.load_state_dict(build("wsms_test_vit", seed=1).state_dict(), assign=True) and model,
        lambda model: model.requires_grad_(False).bfloat16(),
    ],
    ids=["meta", "to_empty", "overwrite", "assign", "bfloat16"],
)
def test_new_tensors_in_a_module_that_shares_some_and_not_others(operation):
    model = build("wsms_test_vit")
    root = model.stages["2"].backbone
    assert root.cls_token is model.backbone.cls_token and root.pos_embed is not model.backbone.pos_embed
    before = groups(model)
    model = operation(model)
    assert groups(model) == before
    root = model.stages["2"].backbone
    assert root.cls_token is model.backbone.cls_token and root.pos_embed.shape == (1, 26, 64)
    assert sum("cls_token" in key for key in model.state_dict()) == 1


def test_only_tensors_without_values_are_not_initialized():
    own = nn.Linear(3, 4)
    before = own.weight.detach().clone()
    with SkipInit():
        with torch.device("meta"):
            empty = nn.Linear(3, 4)
        assert nn.init.trunc_normal_(empty.weight) is empty.weight and empty.weight.mul_(2) is empty.weight
        nn.init.constant_(own.bias, 5)
        own.weight.data.mul_(2)
    assert (empty.weight.shape, empty.weight.is_meta, empty.bias.shape) == ((4, 3), True, (4,))
    assert torch.equal(own.weight, 2 * before) and (own.bias == 5).all()


class Recorder(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def test_another_image_size_spends_nothing_on_initialization():
    initialize = {"uniform_.default", "normal_.default", "erfinv_.default", "mul_.Tensor", "fill_.Scalar"}
    with Recorder() as plain:
        backbone = timm.create_model("test_vit")
    with Recorder() as shared:
        build_sharing(lambda: timm.create_model("test_vit", img_size=80), backbone, "batch")
    assert initialize <= plain.names and not initialize & shared.names
