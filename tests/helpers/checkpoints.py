"""What the tests of the warm start share: checkpoints with random weights, and networks that start from them."""

import timm
import torch
from safetensors.torch import save_file
from torch import nn

import timm_wsms  # noqa: F401  registers the names
from tests.helpers import networks

torch.set_num_threads(1)


def trained(name, **kwargs):
    """A backbone with random weights, statistics and scales, as if it had been trained."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)) and module.weight is not None:
                for tensor in (module.weight, *module.buffers()):
                    if tensor.is_floating_point():
                        tensor.copy_(torch.rand_like(tensor) + 0.5)
                    else:
                        tensor.fill_(17)  # batches seen
                if module.bias is not None:
                    module.bias.copy_(torch.rand_like(module.bias) - 0.5)
        for parameter in model.parameters():
            if not parameter.any():  # some classifiers start as zeros
                parameter.normal_(std=0.02)
    return model


def write(state_dict, path):
    """The overlay that names a checkpoint, after it is written: safetensors, or pickle if the name says so."""
    if path.suffix == ".safetensors":
        save_file({key: tensor.clone().contiguous() for key, tensor in state_dict.items()}, path)
    else:
        torch.save(state_dict, path)
    return {"file": str(path)}


def checkpoint_of(model, folder):
    """The overlay that names a backbone's checkpoint, after it is written."""
    return write(model.state_dict(), folder / "weights.safetensors")


def start(name, overlay, **kwargs):
    """A model that starts from a checkpoint, as a user asks timm for it."""
    torch.manual_seed(1)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def images(channels=3, side=64, batch=4):
    """Images (batch, channels, side, side), always the same."""
    return networks.images(side, batch, channels=channels)


def run(model, training, x=None):
    """Logits, with the same random numbers every time."""
    torch.manual_seed(5)
    with torch.no_grad():
        return model.train(training)(images() if x is None else x)


def logits_differ(model, backbone, training, x):
    """The largest difference of the logits; 0 if they are the same bit for bit. Constant logits would prove nothing."""
    found, expected = run(model, training, x), run(backbone, training, x)
    assert found.shape == expected.shape and found.isfinite().all() and found.std() > 0
    return 0.0 if torch.equal(found, expected) else (found - expected).abs().max().item()


class Evil:
    """Unpickled, it leaves a trace."""

    ran = False

    def __reduce__(self):
        return set_ran, ()


def set_ran():
    """What must never be called."""
    Evil.ran = True
