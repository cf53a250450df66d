"""Every pretrained tag of timm's: `wsms_X.tag` fetches the very weights of `X.tag`, and says the same about them."""

import dataclasses
import json
from pathlib import Path

import timm
from timm.models import get_arch_pretrained_cfgs

import timm_wsms

TABLE = json.loads((Path(timm_wsms.__file__).parent / "registry" / "stageable.json").read_text())
STAGEABLE = [name for name in TABLE["stageable"] if timm.is_model(name)]
NOT_MEAN = TABLE["not_mean"]
TAGS = [tag for name in STAGEABLE for tag in get_arch_pretrained_cfgs(name)]
WHERE = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "tag")
WHAT = ("input_size", "test_input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct",
        "test_crop_pct", "crop_mode", "mean", "std", "num_classes", "label_offset", "label_names", "pool_size",
        "license")  # fmt: skip
NAMES_IN_MODEL = ("first_conv", "classifier")


def inside(names):
    """The names of modules as the network has them."""
    if isinstance(names, (tuple, list)):
        return tuple(map(inside, names))
    return names and f"backbone.{names}"


def test_every_tag_points_to_the_backbones_weights():
    for tag in TAGS:
        own, ours = timm.get_pretrained_cfg(tag), timm.get_pretrained_cfg(f"wsms_{tag}")
        for field in (*WHERE, *WHAT):
            assert getattr(ours, field) == getattr(own, field), (tag, field)
        for field in dataclasses.fields(own):  # and whatever a later timm adds
            if field.name not in ("architecture", *NAMES_IN_MODEL):
                assert getattr(ours, field.name) == getattr(own, field.name), (tag, field.name)
        assert ours.architecture in (None, f"wsms_{tag.split('.')[0]}")
    assert len(TAGS) > 1_900  # 2,023 in timm 1.0.31


def test_nothing_points_to_a_place_made_up_from_the_new_name():
    for tag in TAGS:
        cfg = timm.get_pretrained_cfg(f"wsms_{tag}")
        assert not any("wsms" in str(getattr(cfg, field)) for field in WHERE), tag


def test_the_averaging_form_has_the_same_tags():
    for tag in TAGS:
        if tag.split(".")[0] not in NOT_MEAN:
            own, ours = timm.get_pretrained_cfg(tag), timm.get_pretrained_cfg(f"wsmean_{tag}")
            for field in (*WHERE, *WHAT):
                assert getattr(ours, field) == getattr(own, field), (tag, field)
            for field in NAMES_IN_MODEL:  # the backbone's head, whatever the backbone
                assert getattr(ours, field) == inside(getattr(own, field)), (tag, field)


def test_names_of_modules_hold_in_the_network():
    compared = 0
    for tag in TAGS:
        own, ours = timm.get_pretrained_cfg(tag), timm.get_pretrained_cfg(f"wsms_{tag}")
        for field in NAMES_IN_MODEL:
            if tag.split(".")[0] in timm_wsms.backbones.CIFAR_NAMES and field == "classifier":
                assert ours.classifier == "head.fc"  # their integrated map has a head of its own
            else:
                assert getattr(ours, field) == inside(getattr(own, field)), (tag, field)
                compared += getattr(own, field) is not None
    assert compared > 3_800


def test_the_default_tag_is_the_backbones():
    assert len(STAGEABLE) > 1_300
    for name in STAGEABLE:
        own, ours = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(f"wsms_{name}")
        assert (own is None) == (ours is None)
        assert own is None or (ours.tag, ours.hf_hub_id, ours.url) == (own.tag, own.hf_hub_id, own.url)
        for prefix in ("wsms_",) if name in NOT_MEAN else ("wsms_", "wsmean_"):
            mine, theirs = (get_arch_pretrained_cfgs(which) for which in (f"{prefix}{name}", name))
            assert [*mine] == [f"{prefix}{tag}" for tag in theirs]  # the same order: the first is the default


def test_timm_lists_what_it_lists_of_the_backbones():
    own = {tag for tag in timm.list_models(pretrained=True) if tag.split(".")[0] in {*STAGEABLE}}
    means = {tag for tag in own if tag.split(".")[0] not in NOT_MEAN}
    for prefix, expected in (("wsms_", own), ("wsmean_", means)):
        assert {*timm.list_models(f"{prefix}*", pretrained=True)} == {f"{prefix}{tag}" for tag in expected}
    assert len(own) > 1_700  # 1,786 in timm 1.0.31
    for tag in own:
        assert timm.get_pretrained_cfg(f"wsms_{tag}").has_weights
    for name in STAGEABLE:
        assert timm.is_model_pretrained(f"wsms_{name}") == timm.is_model_pretrained(name)
