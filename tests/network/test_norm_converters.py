"""What replaces norms: converters keep the logits, and a norm folded into a shared layer is refused."""

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.utils import reparameterize_model
from torch import nn
from torch.ao.quantization import fuse_modules

from tests.helpers.networks import EXACT, build, images, logits
from timm_wsms import UserError, fuse

NEAR = {"rtol": 1e-5, "atol": 1e-6}
FORMS = ("batch", "none", "statistics", "mean")
CONVERTERS = {
    "torch's SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's SyncBatchNorm": convert_sync_batchnorm,
    "timm's frozen norms": freeze_batch_norm_2d,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", CONVERTERS)
def test_converted_norms_give_the_same_logits(how, form):
    model, expected = build(form), logits(build(form))
    found = logits(CONVERTERS[how](model))
    torch.testing.assert_close(found, expected, **(NEAR if "frozen" in how else EXACT))


@pytest.mark.parametrize("layers", ["backbone", "all"])
@pytest.mark.parametrize("form", ["batch", "statistics", "mean"])
def test_a_norm_folded_into_a_shared_layer_is_refused(form, layers):
    """Each stage has a norm of its own, and one layer cannot hold the product with all of them."""
    model = build(form).eval()
    pairs = [["backbone.layer1.0.conv1", "backbone.layer1.0.bn1"]]
    if layers == "all":
        pairs += [[f"stages.2.{name}" for name in pairs[0]]]
    model = fuse_modules(model, pairs)
    with pytest.raises(UserError, match=r"timm_wsms\.fuse|share_weights=False"):
        model(images())


def test_the_remedy_that_it_names():
    model, expected = build("batch"), logits(build("batch"))
    torch.testing.assert_close(logits(fuse(model)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # a full-size backbone
def test_timms_reparameterize_model_is_refused_and_the_remedy_named():
    torch.manual_seed(0)
    model = timm.create_model("wsms_repvgg_a0", num_classes=5).eval()
    with pytest.raises(UserError, match=r"timm's re-parameterizable blocks: timm_wsms\.fuse"):
        reparameterize_model(model)(images())
