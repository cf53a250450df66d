"""The state-dict promise, clause by clause, each by comparing values; and timm's interface of the head."""

import copy
from collections import OrderedDict

import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.checkpoint import checkpoint

from timm_wsms import WsmsNet
from timm_wsms.backbones.sequential import SequentialBackbone
from timm_wsms.recompute import update_statistics_once
from timm_wsms.training.checkpoint import save_model_folder

torch.set_num_threads(1)
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
FORMS = {  # every way in which tensors are shared, or not
    "batch": ("test_resnet", {}),
    "none": ("test_resnet", {"unshared_norms": "none"}),
    "all": ("test_convnext", {"unshared_norms": "all"}),
    "ms": ("test_resnet", {"share_weights": False}),
    "own head": ("test_resnet", {"integration": "none", "residual": False}),
    "own end": ("densenet100_k24_cifar", {"depth": 10}),  # stages that end in a norm of their own
}
each_form = pytest.mark.parametrize("form", FORMS)


def build(form="batch", seed=0, **kwargs):
    """A network whose tensors, γ and running statistics too, have values that no default would hide."""
    name, arguments = FORMS[form]
    torch.manual_seed(seed)
    model = timm.create_model(f"wsms_{name}", num_classes=5, **arguments, **kwargs)
    return randomize(model, seed)


def randomize(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
                tensor.copy_(noise / 2 - 0.25 if name.endswith(("bias", "running_mean")) else noise + 0.5)
            elif tensor.is_floating_point() and seed:
                tensor.mul_(1 + torch.rand(tensor.shape, generator=generator).to(tensor.dtype))
    return model


def images(side=64, number=2, seed=1, dtype=torch.float32):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits(model, dtype=torch.float32):
    with torch.no_grad():
        return model.eval()(images(dtype=dtype))


def tensors(model):
    """Every parameter and buffer by name, a shared one under each of its names."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def sharing(model):
    """Which names stand for one tensor."""
    groups = {}
    for name, tensor in tensors(model).items():
        groups.setdefault(id(tensor), set()).add(name)
    return sorted(sorted(group) for group in groups.values())


def check_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], **(tolerance or EXACT), msg=lambda text, key=key: key + text)


def check_values_are_shared(model):
    """A change of a shared tensor reaches every stage that has it: by values, not by identity."""
    with torch.no_grad():
        for name, tensor in model.backbone.named_parameters():
            tensor.fill_(len(name))
    changed = 0
    for stage in model.stages.values():
        for name, tensor in stage.backbone.named_parameters():
            if tensor.ndim == 4:
                changed += 1
                assert (tensor == len(name)).all(), name
    assert changed > 10


def gradients(model, x, loss=lambda output: output.square().sum()):
    model.zero_grad()
    loss(model(x)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# ---- every tensor once, under timm's names


@each_form
def test_every_tensor_stands_in_it_once(form):
    model = build(form)
    state = model.state_dict()
    every = tensors(model)
    assert {tensor.data_ptr() for tensor in state.values()} == {tensor.data_ptr() for tensor in every.values()}
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    assert len(state) == len({id(tensor) for tensor in every.values()})
    for key, tensor in state.items():
        assert tensor.data_ptr() == every[key].data_ptr()


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"])
def test_keys_under_backbone_are_timms(name):
    model = timm.create_model(f"wsms_{name}")
    state = model.state_dict()
    own = {key.removeprefix("backbone."): value.shape for key, value in state.items() if key.startswith("backbone.")}
    assert own == {key: value.shape for key, value in timm.create_model(name).state_dict().items()}
    rest = {key for key in state if not key.startswith("backbone.")}
    norms = {f"stages.{key}" for key, _ in model.stages.named_parameters(remove_duplicate=False)}
    assert {key for key in rest if not key.startswith("stages.")} == {
        "integration.conv.weight",
        "integration.gamma",
        *(f"integration.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        "integration.norm.num_batches_tracked",
    }
    convolutions = {key for key in rest if key.startswith("stages.") and state[key].ndim > 1}
    assert not convolutions and norms


def test_keys_under_backbone_with_a_head_of_another_width_are_timms_but_for_the_head():
    state = build("own head").state_dict()
    own = {key.removeprefix("backbone.") for key in state if key.startswith("backbone.")}
    assert own == {key for key in timm.create_model("test_resnet").state_dict() if not key.startswith("fc.")}
    assert {key for key in state if not key.startswith(("backbone.", "stages."))} == {"head.fc.weight", "head.fc.bias"}


@each_form
def test_strict_load(form):
    source, target = build(form), build(form, seed=1)
    expected = logits(source)
    assert (logits(target) - expected).abs().max() > 1e-3
    before = sharing(target)
    assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
    assert sharing(target) == before
    torch.testing.assert_close(logits(target), expected, **EXACT)
    check_same(target.state_dict(), source.state_dict())


def test_strict_load_inside_another_module():
    source, target = nn.Sequential(build()), nn.Sequential(build(seed=1))
    assert all(key.startswith("0.") for key in source.state_dict())
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(logits(target), logits(source), **EXACT)


@pytest.mark.parametrize("key", ["backbone.conv1.0.weight", "stages.2.backbone.bn1.weight", "integration.gamma"])
def test_strict_load_notices_what_is_missing(key):
    model = build()
    state = model.state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{key}"'):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"stages\.4\.x"'):
        model.load_state_dict({**model.state_dict(), "stages.4.x": torch.zeros(1)})


@each_form
def test_load_by_assignment(form):
    source, target = build(form), build(form, seed=1)
    before = sharing(target)
    target.load_state_dict(source.state_dict(), assign=True)
    assert sharing(target) == before
    torch.testing.assert_close(logits(target), logits(source), **EXACT)
    if form in ("batch", "all", "none"):
        check_values_are_shared(target)


# ---- files


@each_form
def test_safetensors_round_trip(form, tmp_path):
    source, target = build(form), build(form, seed=1)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    check_same(stored, source.state_dict())
    target.load_state_dict(stored)
    torch.testing.assert_close(logits(target), logits(source), **EXACT)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_checkpoint_folder_round_trip(memory_format, tmp_path):
    source = build().to(memory_format=memory_format)
    expected = logits(source)
    save_model_folder(source, tmp_path, timm.data.resolve_data_config(model=source), list("abcde"), images())
    check_same(load_file(tmp_path / "model.safetensors"), source.state_dict())
    target = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    check_same(target.state_dict(), source.state_dict())
    torch.testing.assert_close(logits(target), expected, rtol=1e-5, atol=1e-5)


@each_form
def test_accelerator_save_model_then_strict_load(form, tmp_path):
    source, target = build(form), build(form, seed=1)
    Accelerator(cpu=True).save_model(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    target.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(logits(target), logits(source), **EXACT)
    check_same(target.state_dict(), source.state_dict())


# ---- copies and conversions


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("form", ["batch", "none", "ms"])
def test_moving_average_of_three_steps(form, foreach):
    model = build(form)
    ema = ModelEmaV3(model, decay=0.9, foreach=foreach)
    average = {key: value.clone() for key, value in model.state_dict().items()}
    for step in range(3):
        randomize(model, seed=10 + step)
        model.train()(images(seed=step))  # moves running statistics and num_batches_tracked
        ema.update(model)
        for key, value in model.state_dict().items():
            average[key] = 0.9 * average[key] + 0.1 * value if value.is_floating_point() else value.clone()
    check_same(ema.module.state_dict(), average, rtol=1e-5, atol=1e-6)
    assert sharing(ema.module) == sharing(model)
    moved = (average["backbone.layer1.0.conv1.weight"] - model.state_dict()["backbone.layer1.0.conv1.weight"]).abs()
    assert moved.max() > 1e-3
    by_hand = build(form)
    by_hand.load_state_dict(average)
    torch.testing.assert_close(logits(ema.module), logits(by_hand), rtol=1e-4, atol=1e-4)


@each_form
def test_deepcopy_shares_inside_and_nothing_outside(form):
    model = build(form)
    copied = copy.deepcopy(model)
    assert sharing(copied) == sharing(model)
    expected = logits(model)
    check_same(copied.state_dict(), model.state_dict())
    torch.testing.assert_close(logits(copied), expected, **EXACT)
    with torch.no_grad():
        for tensor in tensors(model).values():
            tensor.zero_()
    torch.testing.assert_close(logits(copied), expected, **EXACT)
    if form in ("batch", "all", "none"):
        check_values_are_shared(copied)


@each_form
def test_to_bfloat16(form):
    model = build(form)
    expected = {k: v.bfloat16() if v.is_floating_point() else v.clone() for k, v in model.state_dict().items()}
    before, exact = sharing(model), logits(model)
    model = model.to(torch.bfloat16)
    assert sharing(model) == before
    check_same(model.state_dict(), expected)
    found = logits(model, torch.bfloat16).float()
    assert (found - exact).norm() < 0.05 * exact.norm()
    gradients(model.train(), images(dtype=torch.bfloat16))  # a parameter that was left behind would raise
    if form in ("batch", "all", "none"):
        check_values_are_shared(model)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_mambaout"])
def test_channels_last_gives_the_same_logits_and_gradients(name):
    torch.manual_seed(0)
    model = randomize(timm.create_model(f"wsms_{name}", num_classes=5)).double().eval()
    x = images(dtype=torch.float64)
    expected, expected_gradients = logits(model, torch.float64), gradients(model, x)
    before = sharing(model)
    model = model.to(memory_format=torch.channels_last)
    assert sharing(model) == before
    spatial = [tensor for tensor in tensors(model).values() if tensor.ndim == 4 and tensor.shape[2] > 1]
    assert spatial and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in spatial)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, **CLOSE)
    check_same(gradients(model, x.to(memory_format=torch.channels_last)), expected_gradients, **CLOSE)


@each_form
def test_built_without_memory_then_filled(form):
    source = build(form)
    name, arguments = FORMS[form]
    with torch.device("meta"):
        empty = timm.create_model(f"wsms_{name}", num_classes=5, **arguments)
    assert all(tensor.is_meta for tensor in tensors(empty).values())
    before = sharing(empty)
    assert before == sharing(source)
    assigned = copy.deepcopy(empty)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(source.state_dict())
    assigned.load_state_dict(source.state_dict(), assign=True)
    for model in (filled, assigned):
        assert sharing(model) == before
        torch.testing.assert_close(logits(model), logits(source), **EXACT)


def check_synchronized(model, converted, norm):
    """The same network with another class of batch normalization, module by module."""
    kept = sharing(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    model = converted(model)
    assert [name for name, module in model.named_modules() if isinstance(module, norm)] == expected
    assert not [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sharing(model) == kept
    check_same(model.state_dict(), state)
    model.load_state_dict(state)
    return model


def test_synchronized_batch_normalization_keeps_what_is_shared():
    # torch's converter drops timm's activations, so only where the norms have none; timm's knows them
    model = build("batch", integration_channels=8, residual=False, integration="conv1x1")
    model.integration.norm = nn.BatchNorm2d(8)
    expected = logits(model)
    model = check_synchronized(model, nn.SyncBatchNorm.convert_sync_batchnorm, nn.SyncBatchNorm)
    torch.testing.assert_close(logits(model), expected, **EXACT)  # eval mode needs no other process
    check_values_are_shared(model)

    model = randomize(timm.create_model("wsms_test_efficientnet", num_classes=5))
    expected = logits(model)
    model = check_synchronized(model, timm.layers.convert_sync_batchnorm, nn.SyncBatchNorm)
    torch.testing.assert_close(logits(model), expected, **EXACT)
    check_values_are_shared(model)


# ---- compilers


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["batch", "own head"])
def test_compiled_as_one_graph(form, training):
    plain = build(form).double().train(training)
    model = copy.deepcopy(plain)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(dtype=torch.float64)
    torch.testing.assert_close(compiled(x), plain(x), **CLOSE)
    check_same(model.state_dict(), plain.state_dict(), **CLOSE)  # running statistics
    check_same(gradients(model.train(training), x), gradients(plain, x), **CLOSE)
    compiled(x).square().sum().backward()
    plain(x).square().sum().backward()
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, **CLOSE, msg=lambda text, name=name: name + text)


def test_compiled_to_machine_code():
    """A backbone of two layers: every kernel takes the C++ compiler seconds."""
    torch.manual_seed(0)
    layers = {"conv0": nn.Conv2d(3, 8, 3, padding=1), "layer1": nn.Conv2d(8, 8, 3, stride=2, padding=1)}
    info = [
        {"num_chs": 8, "reduction": 1, "module": "features.conv0"},
        {"num_chs": 8, "reduction": 2, "module": "features.layer1"},
    ]
    backbone = SequentialBackbone(nn.Sequential(OrderedDict(layers)), info)
    plain = randomize(WsmsNet(lambda: backbone, residual=True)).eval()
    compiled = torch.compile(plain, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(8)), plain(images(8)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_mambaout", "resnet20_cifar"])
def test_exported(name):
    torch.manual_seed(0)
    model = randomize(timm.create_model(f"wsms_{name}", num_classes=5)).eval()
    program = torch.export.export(model, (images(),))
    with torch.no_grad():
        for seed in (1, 2):
            torch.testing.assert_close(program.module()(images(seed=seed)), model(images(seed=seed)))


# ---- activation checkpointing


def check_recomputation(plain, model, run):
    """The same gradients, and running statistics moved by one batch once."""
    x = images(dtype=torch.float64)
    expected = gradients(plain.train(), x)
    model.train()
    run(model, x).square().sum().backward()
    check_same({name: parameter.grad for name, parameter in model.named_parameters()}, expected, **CLOSE)
    check_same(model.state_dict(), plain.state_dict(), **CLOSE)
    counts = [value.item() for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts and set(counts) == {1}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet20_cifar", "densenet100_k24_cifar"])
def test_gradient_checkpointing(name):
    arguments = {"depth": 10} if "densenet" in name else {}
    torch.manual_seed(0)
    plain = randomize(timm.create_model(f"wsms_{name}", num_classes=5, **arguments)).double()
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    convolutions = []
    last = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d) and module.groups == 1][-2]
    last.register_forward_hook(lambda *_: convolutions.append(1))
    check_recomputation(plain, model, lambda model, x: model(x))
    assert len(convolutions) == 2  # it did recompute
    model.set_grad_checkpointing(False)
    model.zero_grad()
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(gradients(model, images(dtype=torch.float64)),
                               gradients(plain, images(dtype=torch.float64)), **CLOSE)  # fmt: skip
    check_same(model.state_dict(), plain.state_dict(), **CLOSE)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("share_weights", [True, False])
def test_checkpointing_of_the_whole_model(share_weights):
    plain = build(share_weights=share_weights).double()
    model = copy.deepcopy(plain)
    update_statistics_once(model)
    check_recomputation(plain, model, lambda model, x: checkpoint(model, x, use_reentrant=False))


def test_statistics_of_a_cumulative_average_are_updated_once_too():
    plain = build().double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model = copy.deepcopy(plain)
    update_statistics_once(model)
    check_recomputation(plain, model, lambda model, x: checkpoint(model, x, use_reentrant=False))
    assert all(module.momentum is None for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_gradient_checkpointing_with_a_compiler():
    plain = build().double()
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    check_recomputation(plain, model, lambda _, x: compiled(x))


# ---- the head, as timm asks of every model

HEADS = {
    "test_resnet": {},
    "mobilenetv3_small_050": {},  # a head with layers of its own
    "test_convnext": {},  # a head with a norm of its own
    "test_resnet none": {"integration": "none", "residual": False},
    "test_resnet 24": {"integration_channels": 24, "residual": False},
    "mobilenetv3_small_050 none": {"integration": "none", "residual": False},
    "test_convnext none": {"integration": "none", "residual": False},
    "test_convnext 24": {"integration_channels": 24, "residual": False},
    "test_mambaout none": {"integration": "none", "residual": False},  # maps (B, H, W, C)
    "resnet20_cifar": {},
}
each_head = pytest.mark.parametrize("case", HEADS)


def with_head(case, **kwargs):
    name = case.split()[0]
    torch.manual_seed(0)
    model = randomize(timm.create_model(f"wsms_{name}", **HEADS[case], **kwargs)).eval()
    assert (model.head is None) == (case == name and not name.endswith("_cifar"))
    return name, model


def timms_head(name, model, *reset):
    """Timm's own head on the same weights, after `reset_classifier` with these arguments if there are any."""
    backbone = timm.create_model(name, num_classes=model.backbone.num_classes).eval()
    backbone.load_state_dict(model.backbone.state_dict())
    if reset:
        backbone.reset_classifier(*reset)
    return backbone.forward_head


def features_of(model, x):
    features = model.forward_features(x)
    return features.permute(0, 3, 1, 2) if model.nhwc else features


@each_head
def test_forward_is_features_then_head(case):
    name, model = with_head(case, num_classes=11)
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        found = model.forward_head(features)
        assert features_of(model, x).shape[1] == model.num_features
        assert pre_logits.shape == (2, model.head_hidden_size)
        if model.head is None:
            head = timms_head(name, model)
            torch.testing.assert_close(pre_logits, head(features, pre_logits=True), **EXACT)
            torch.testing.assert_close(found, head(features), **EXACT)
        else:
            torch.testing.assert_close(pre_logits, features_of(model, x).mean((2, 3)))
            classifier = model.get_classifier()
            torch.testing.assert_close(found, F.linear(pre_logits, classifier.weight, classifier.bias))
        torch.testing.assert_close(model(x), found, **EXACT)
        assert found.shape == (2, 11) == (2, model.num_classes)


@each_head
def test_get_classifier(case):
    _, model = with_head(case, num_classes=11)
    classifier = model.get_classifier()
    assert isinstance(classifier, nn.Linear)
    assert (classifier.in_features, classifier.out_features) == (model.head_hidden_size, 11)
    assert model.get_submodule(model.get_classifier(name_only=True)) is classifier
    assert model.default_cfg["classifier"] == model.get_classifier(name_only=True)


@each_head
def test_reset_classifier(case):
    name, model = with_head(case)
    x = images()
    with torch.no_grad():
        features, maps = model.forward_features(x), features_of(model, x)
        pre_logits = model.forward_head(features, pre_logits=True)
        model.reset_classifier(7)
        assert model.num_classes == 7 and model(x).shape == (2, 7)
        assert model.get_classifier().out_features == 7
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), pre_logits, **EXACT)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pre_logits, **EXACT)
        model.reset_classifier(3)  # and back
        assert model.num_classes == 3 and model(x).shape == (2, 3)
        model.reset_classifier(0, "")
        assert model.num_classes == 0
        found = model(x)
    if model.head is None:
        torch.testing.assert_close(found, timms_head(name, with_head(case)[1], 0, "")(features), **EXACT)
    else:
        torch.testing.assert_close(found, maps.permute(0, 2, 3, 1) if model.nhwc else maps, **EXACT)


@each_head
def test_other_pooling(case):
    name, model = with_head(case, num_classes=6)
    other = "avgmax" if "mobilenet" in name else "max"
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
        if model.head is None:
            expected = timms_head(name, model, 0, other)(features)
        else:
            maps = features_of(model, x)
            expected = maps.amax((2, 3)) if other == "max" else (maps.amax((2, 3)) + maps.mean((2, 3))) / 2
        model.reset_classifier(0, other)
        torch.testing.assert_close(model(x), expected)
        assert model.global_pool == other


@each_head
def test_every_parameter_gets_a_gradient(case):
    """A head of another width leaves nothing behind of the backbone's own."""
    _, model = with_head(case, num_classes=6)
    for name, gradient in gradients(model, images()).items():
        assert gradient.abs().max() > 0, name


def test_dropout_and_mode_of_a_head_of_another_width():
    _, model = with_head("test_resnet none", num_classes=0, drop_rate=0.5)
    with torch.no_grad():
        features = model.forward_features(images(number=8)).relu() + 1
        assert torch.equal(model.forward_head(features), features.mean((2, 3)))  # eval
        dropped = model.train().forward_head(features)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * features.mean((2, 3))[kept])
    assert 0.4 < kept.float().mean() < 0.6


def test_one_stage_is_the_backbone():
    torch.manual_seed(0)
    backbone = randomize(timm.create_model("test_resnet", num_classes=5)).eval()
    model = WsmsNet(lambda: backbone, stages=1)
    assert {key.removeprefix("backbone.") for key in model.state_dict()} == set(backbone.state_dict())
    torch.testing.assert_close(logits(model), logits(backbone), **EXACT)
    assert (model.num_features, model.head_hidden_size, model.num_classes) == (96, 96, 5)
