"""The table of what timm does not say about its backbones: its names are timm's, and its rows reach the networks."""

import importlib
import pkgutil

import pytest
import timm
import torch
from torch import nn

import timm_wsms.backbones
from timm_wsms.network.backbone_traits import (
    DEFAULT,
    TRAITS,
    BackboneTraits,
    feature_layout,
    has_neck,
    traits_of,
)


def classes():
    """Name → classes of that name that timm's models and this package's backbones define."""
    found = {}
    for package in (timm.models, timm_wsms.backbones):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.name:
                    found.setdefault(name, []).append(value)
    return found


def test_every_row_names_one_class_of_the_installed_timm():
    found = classes()
    for name in TRAITS:
        assert name in found, f"timm {timm.__version__} renamed {name}: find its new name and move the row"
        assert len(found[name]) == 1, f"{name} is now the name of several classes: {found[name]}"
    assert [*TRAITS] == sorted(TRAITS, key=str.lower), "rows stand in alphabetical order"
    assert DEFAULT not in TRAITS.values()


def test_paths_lead_to_modules():
    """A path that timm renamed would leave stages without their end, or a neck unseen."""
    names = {
        "CifarDenseNet": "densenet100_k24_cifar",
        "DPN": "dpn48b",
        "DenseNet": "densenet121",
        "EfficientNet": "test_efficientnet",
        "NormFreeNet": "test_nfnet",
        "RegNet": "regnetx_002",
        "ResNetV2": "test_resnetv2" if timm.is_model("test_resnetv2") else "resnetv2_50",
        "XceptionAligned": "xception41p",
    }
    with_paths = {name for name, row in TRAITS.items() if row.preactivation_end or row.neck}
    assert {*names} == with_paths
    with torch.device("meta"):
        for kind, name in names.items():
            backbone = timm.create_model(name)
            assert traits_of(backbone) is TRAITS[kind], name
            for path in (TRAITS[kind].preactivation_end, TRAITS[kind].neck):
                assert path is None or isinstance(backbone.get_submodule(path), nn.Module)


def test_a_subclass_has_its_parents_row_and_a_namesake_from_elsewhere_has_none():
    parent = timm.models.densenet.DenseNet

    class Child(parent):
        pass

    assert traits_of(Child.__new__(Child)) is TRAITS["DenseNet"]
    namesake = type("DenseNet", (nn.Module,), {"__module__": "torchvision.models.densenet"})
    assert traits_of(namesake()) is DEFAULT
    assert traits_of(nn.Linear(1, 1)) is DEFAULT


def test_whole_backbones_have_their_own_numbers_where_a_row_says_so():
    row = BackboneTraits(image_multiple=16, image_minimum=43, whole_minimum=75)
    assert row.multiple_and_minimum(whole=False) == (16, 43)
    assert row.multiple_and_minimum(whole=True) == (16, 75)
    assert BackboneTraits(whole_multiple=32).multiple_and_minimum(whole=False) == (1, 1)


@pytest.mark.parametrize(
    "name, layout",
    [("test_resnet", "NCHW"), ("test_mambaout", "NHWC"), ("efficientvim_m1", "NCL"), ("test_vit", "NCHW")],
)
def test_layouts(name, layout):
    with torch.device("meta"):
        assert feature_layout(timm.create_model(name)) == layout


@pytest.mark.parametrize("name, expected", [("regnetx_002", False), ("regnetv_040", True), ("test_efficientnet", True)])
def test_necks(name, expected):
    with torch.device("meta"):
        backbone = timm.create_model(name)
    assert has_neck(backbone) == expected
