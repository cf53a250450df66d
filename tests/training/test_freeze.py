"""What is frozen: integration layer and classifier train, all else stays as it is."""

import pytest
import timm
import torch
from torch import nn

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.training.freeze import Freeze
from timm_wsms.training.settings import Settings

TRAINED = {
    "wsms_test_resnet": ("integration.", "backbone.fc."),
    "wsms_resnet20_cifar": ("integration.", "head.fc."),
    "ms_test_resnet": ("integration.", "backbone.fc."),
    "wsms_test_vit": ("integration.", "backbone.head."),
    "test_convnext": ("head.fc.",),
}


@pytest.mark.parametrize("share_weights", [True, False])
def test_with_averaged_stages_their_classifiers_are_trained(share_weights):
    model = timm.create_model("wsms_test_resnet", num_classes=5, fusion="mean", share_weights=share_weights)
    Freeze(model, Settings("a", freeze="backbone")).set_epoch(1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".fc." in name}
    assert len(trained) == (2 if share_weights else 2 * len(model.factors()))


@pytest.mark.parametrize("name", TRAINED)
def test_which_parameters_are_trained_in_which_epoch(name):
    model = timm.create_model(name, num_classes=5)
    fixed = next(iter(dict(model.named_parameters())))
    model.get_parameter(fixed).requires_grad_(False)  # as some of timm's position tables
    freeze = Freeze(model, Settings(name, freeze="backbone", freeze_epochs=2, epochs=4))
    changes = []
    for epoch in (1, 2, 3, 4):
        changes.append(freeze.set_epoch(epoch))
        for key, parameter in model.named_parameters():
            trained = key != fixed and (epoch > 2 or key.startswith(TRAINED[name]))
            assert parameter.requires_grad == trained, (epoch, key)
        expected = [
            module
            for key, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d) and not key.startswith("integration")
        ]
        assert freeze.norms == (expected if epoch <= 2 else [])
    assert changes == [True, False, True, False]
    assert freeze.set_epoch(1)  # and back


def test_without_a_number_of_epochs_it_is_for_all_of_them_and_none_by_default():
    model = timm.create_model("test_convnext", num_classes=5)
    freeze = Freeze(model, Settings("a", freeze="backbone", epochs=3))
    assert [freeze.set_epoch(epoch) for epoch in (1, 3)] == [True, False]
    assert not model.get_parameter("stem.0.weight").requires_grad
    never = Freeze(timm.create_model("test_convnext", num_classes=5), Settings("a"))
    assert not never.set_epoch(1)


def test_a_step_leaves_frozen_parameters_alone_also_by_weight_decay():
    model = timm.create_model("wsms_test_resnet", num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    Freeze(model, Settings("a", freeze="backbone")).set_epoch(1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith(TRAINED["wsms_test_resnet"]), name
