"""`timm_wsms.why_not`: why there is no network of a name; and what the commands say then."""

import json

import pytest
import timm

import timm_wsms
from timm_wsms import UserError, why_not
from timm_wsms.registry.why_not import TABLE, check_name

REASONS = json.loads(TABLE.read_text())


@pytest.mark.parametrize("name", ["wsms_resnet50", "ms_resnet50", "wsmean_resnet50", "resnet50", "resnet50.a1_in1k",
                                  "wsms_resnet50.a1_in1k", "wsms_resnet20_cifar"])  # fmt: skip
def test_there_is_one(name):
    assert why_not(name) is None
    check_name(name)


@pytest.mark.parametrize("backbone", REASONS["not_stageable"])
def test_backbones_that_cannot_be_staged(backbone):
    for name in (f"wsms_{backbone}", f"ms_{backbone}", f"wsmean_{backbone}", backbone):
        assert why_not(name) == f"{backbone} cannot be staged: {REASONS['not_stageable'][backbone]}"
    with pytest.raises(UserError) as caught:
        check_name(f"wsms_{backbone}")
    assert str(caught.value) == f"there is no model wsms_{backbone}: {why_not(backbone)}"
    check_name(backbone)  # which is a model of timm's


def test_a_backbone_of_one_image_size():
    assert why_not("wsms_efficientformer_l1") is None
    reason = "efficientformer_l1 cannot be averaged over image sizes: it takes images of one size only"
    assert why_not("wsmean_efficientformer_l1") == reason
    with pytest.raises(UserError, match=f"there is no model wsmean_efficientformer_l1: {reason}"):
        check_name("wsmean_efficientformer_l1")
    with pytest.raises(UserError, match="takes images of one size only"):
        timm.create_model("wsms_efficientformer_l1", fusion="mean")


def test_names_that_timm_does_not_know():
    assert why_not("wsms_resnet5o") == why_not("resnet5o") == f"timm {timm.__version__} has no model resnet5o"
    with pytest.raises(UserError, match=r"there is no model wsms_resnet5o; did you mean .*wsms_resnet50"):
        check_name("wsms_resnet5o")
    with pytest.raises(UserError, match=r"there is no model xyzzy; see timm\.list_models"):
        check_name("xyzzy")
    check_name("hf-hub:someone/model")  # a place, not a name


def test_deprecated_names():
    old, new = next((old, new) for old, new in timm.models.get_deprecated_models().items() if new)
    assert why_not(f"wsms_{old}") == f"{old} is a deprecated name in timm; take {new}"


def test_a_backbone_that_was_registered_later(monkeypatch):
    monkeypatch.setitem(timm_wsms.timm_private.registry._model_entrypoints, "later", timm.models.resnet18)
    assert why_not("wsmean_later") == (
        "later was registered after timm_wsms was imported; call timm_wsms.register('later')"
    )
