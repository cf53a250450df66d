"""PEFT's adapters on networks whose stages share weights: one adapter per weight, merged once."""

import peft
import pytest
import torch
from torch import nn

from tests.helpers.networks import build, images, logits
from timm_wsms import UserError, tie_adapters

LAYERS = r".*layer\d\.\d\.conv\d"
FORMS = ("batch", "mean", "own head", "none", "statistics")


def trained(form, targets=LAYERS, **arguments):
    """A PEFT model after two steps, and the logits before them."""
    model = build(form)
    before = logits(model)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=4, lora_alpha=8, **arguments))
    assert tie_adapters(model) > 0
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 3e-3)
    for seed in range(2):
        optimizer.zero_grad()
        model.eval()(images(seed=seed)).square().mean().backward()
        optimizer.step()
    return model, before


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("form", FORMS)
def test_the_merged_network_is_the_trained_one(form):
    model, before = trained(form)
    found = logits(model)
    assert relative(found, before) > 1e-3  # the adapters did something
    merged = model.merge_and_unload()
    assert relative(logits(merged), found) <= 1e-6
    assert merged.state_dict().keys() == build(form).state_dict().keys()
    plain = build(form, seed=1)
    plain.load_state_dict(merged.state_dict())
    assert relative(logits(plain), found) <= 1e-6


@pytest.mark.parametrize("form", ["batch", "mean"])
def test_merged_and_separated_again(form):
    model, before = trained(form)
    found = logits(model)
    model.merge_adapter()
    assert relative(logits(model), found) <= 1e-6
    model.unmerge_adapter()
    assert relative(logits(model), found) <= 1e-6
    with model.disable_adapter():
        assert relative(logits(model), before) <= 1e-6


def test_a_weight_has_one_adapter():
    model, _ = trained("mean")
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    targets = [name for name, _ in build("mean").backbone.named_modules() if "conv" in name and "layer" in name]
    assert len(layers) == len(targets)
    assert not [key for key in model.state_dict() if "stages." in key and "lora_" in key]


def test_without_the_helper_too():
    """The network ties its adapters when it runs."""
    model = peft.get_peft_model(build("mean"), peft.LoraConfig(target_modules=LAYERS, r=4, init_lora_weights=False))
    found = logits(model)
    assert relative(logits(model.merge_and_unload()), found) <= 1e-6


def test_a_new_classifier_beside_the_adapters():
    model, _ = trained("mean", modules_to_save=["fc"])
    found = logits(model)
    merged = model.merge_and_unload()
    assert relative(logits(merged), found) <= 1e-6
    assert merged.state_dict().keys() == build("mean").state_dict().keys()


def test_saved_and_loaded(tmp_path):
    model, _ = trained("mean")
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(build("mean"), str(tmp_path))
    assert relative(logits(again), logits(model)) <= 1e-6


@pytest.mark.parametrize("form", ["batch", "own head", "own table", "mean"])
def test_all_linear(form):
    model = build(form)
    expected = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    found = logits(model)
    shared = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "merged_adapters")}
    assert shared and shared == {name for name in expected if not name.startswith("stages.")}
    assert relative(logits(model.merge_and_unload()), found) <= 1e-6


def test_what_it_refuses():
    with pytest.raises(UserError, match=r"no adapters; call peft\.get_peft_model"):
        tie_adapters(build())
    with pytest.raises(UserError, match="Linear holds no wsms_"):
        tie_adapters(nn.Linear(1, 1))
