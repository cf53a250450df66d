"""What docs/compatibility.md says nothing notices is so; where that ends, the sentence has to go."""

import timm
import torch
from timm.models import model_parameters
from timm.utils import freeze
from torch import nn

from tests.helpers.networks import build, logits


def test_a_state_dict_does_not_say_which_pyramid_it_belongs_to():
    first, other = (timm.create_model("wsmean_test_resnet", pyramid=pyramid) for pyramid in ([1, 0.5], [1, 0.7]))
    other.load_state_dict(first.state_dict())
    assert (logits(other) - logits(first)).abs().max() > 1e-3


def test_a_norm_that_each_stage_has_for_itself_is_replaced_in_stage_1_alone():
    model = build("batch")
    own = model.stages["2"].backbone.bn1
    model.backbone.bn1 = nn.Identity()
    assert (logits(model) - logits(build("batch"))).abs().max() > 1e-3
    assert model.stages["2"].backbone.bn1 is own and isinstance(own, nn.BatchNorm2d)


def test_timms_freeze_leaves_the_norms_of_other_stages_as_they_are():
    model = build("batch")
    freeze(model, ["backbone"])
    logits(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in dict(build("batch").named_parameters()) if not name.startswith("backbone.")}
    assert any(name.startswith("stages.2.") for name in trained)
    assert not model.stages["2"].backbone.layer1[0].conv1.weight.requires_grad  # shared: frozen for all


def test_a_square_classifier_may_be_transposed():
    model = timm.create_model("wsms_test_resnet", num_classes=96)
    state = dict(model.state_dict())
    transposed = state["backbone.fc.weight"].T.clone()
    model.load_state_dict(state | {"backbone.fc.weight": transposed})
    assert torch.equal(model.get_classifier().weight, transposed)


def test_a_name_without_backbone_may_be_a_stage():
    model = timm.create_model("wsms_test_convnext")
    freeze(model, ["stages.2"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith("backbone.stages.0.") for name in frozen)  # shared with stage 2 of the network


def test_a_loop_over_modules_changes_a_shared_weight_once_per_stage():
    model = build("batch")
    before = model.backbone.conv1[0].weight.detach().clone()
    model.apply(lambda module: module.weight.data.mul_(0.5) if isinstance(module, nn.Conv2d) else None)
    assert torch.equal(model.backbone.conv1[0].weight, before * 0.5 ** len(model.backbones()))


def test_timms_last_two_parameters_are_not_the_classifier():
    model = build("batch")
    kept = {id(parameter) for parameter in model_parameters(model, exclude_head=True)}
    assert {id(parameter) for parameter in model.get_classifier().parameters()} <= kept
