"""From a name to a network that is known to fit the images."""

from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import get_model_args
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

import timm_wsms  # noqa: F401  registers the names with timm
from timm_wsms import accelerator
from timm_wsms.cli_errors import is_out_of_memory, is_the_hubs
from timm_wsms.errors import UserError
from timm_wsms.hub.config_check import check_model_args
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.registry.arguments import NETWORK_ARGS
from timm_wsms.training.settings import Settings
from timm_wsms.training.trackers import check_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_accelerator(settings: Settings) -> "Accelerator":
    """Builds the accelerator of a run, with its precision and trackers.

    Raises:
        UserError: the device does not support the precision, a tracker's package is missing, or `accelerate config`
            asks to split the network.
    """
    check_trackers(settings.trackers)
    return accelerator.build_accelerator(settings.precision, settings.trackers, settings.output)


def _check_readable(name: str, network: MultiStageNet) -> None:
    """Checks, before training, that the run's model folder will be readable.

    Raises:
        UserError: a folder may not set one of the backbone's arguments; names it.
    """
    try:
        check_model_args(get_model_args(network, {}), NETWORK_ARGS)
    except UserError as error:
        raise UserError(
            f"{name} cannot be trained with these model_kwargs, since its model folder could not be read again: {error}"
        ) from error


def build(name: str, kwargs: dict[str, Any], num_classes: int | None) -> nn.Module:
    """Builds a model by `timm.create_model`; `num_classes` None: as many as its weights have.

    Raises:
        UserError: it cannot be built with these arguments; says why.
    """
    if "num_classes" in kwargs:
        raise UserError(f"there are {num_classes} classes in the data; leave out model_kwargs.num_classes")
    try:
        network = timm.create_model(name, num_classes=num_classes, **kwargs)
        if isinstance(network, MultiStageNet):
            _check_readable(name, network)
        return network
    except (TypeError, ValueError, AssertionError, OSError, RuntimeError) as error:
        if isinstance(error, UserError) or is_out_of_memory(error) or is_the_hubs(error):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        if "size mismatch" in str(error):
            raise UserError(
                f"{name}({given}) does not fit its weights ({error}); the data has {num_classes} classes: to start "
                "from weights for others, use --model local-dir:<folder> --model_kwargs.pretrained true"
            ) from error
        raise UserError(f"{name}({given}) cannot be built: {error}") from error


def scale_head(network: nn.Module, scale: float | None) -> None:
    """Multiplies the weights and biases of every stage's classifier, as timm's `--head-init-scale` does."""
    if scale is None:
        return
    # Stages may share their classifiers: each parameter once.
    parameters = {id(p): p for part in classifiers(network) for p in part.parameters()}
    for parameter in parameters.values():
        parameter.data.mul_(scale)


def classifiers(network: Any) -> list[nn.Module]:
    """A timm model's classifiers; with `fusion="mean"` those of every stage, which may share weights."""
    found: list[nn.Module] = []
    for part in network.backbones() if isinstance(network, WsmsMeanNet) else [network]:
        classifier = part.get_classifier()
        found += classifier if isinstance(classifier, (tuple, list)) else [classifier]
    return found


def build_optimizer(network: nn.Module, settings: Settings) -> Optimizer:
    """Builds the optimizer by timm's `create_optimizer_v2`.

    Raises:
        UserError: timm has no optimizer of this name, or it does not accept these arguments.
    """
    chosen = settings.optimizer
    try:
        return create_optimizer_v2(
            network,
            opt=chosen.name,
            lr=settings.lr,
            weight_decay=chosen.weight_decay,
            momentum=chosen.momentum,
            filter_bias_and_bn=not chosen.decay_norm_and_bias,
            layer_decay=chosen.layer_decay,
            **chosen.kwargs,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"optimizer {chosen.name} cannot be built: {error}") from error


def adapt(network: nn.Module, settings: Settings, device: torch.device) -> nn.Module:
    """Applies the settings for norms, memory and training to a network; returns it on the device.

    Raises:
        UserError: it cannot be done with this network or device.
    """
    if settings.sync_bn:
        network = synchronize_norms(network, settings.model, device)
    if settings.grad_checkpointing:  # after the norms, since it gives them hooks
        checkpoint_activations(network, settings.model)
    if settings.trains_stages:
        if not isinstance(network, WsmsMeanNet):
            raise UserError(
                f"{settings.model} has no predictions per stage; leave out stage_loss, stage_distill and "
                "stage_consistency, or choose a wsms_ model with --model_kwargs.fusion mean"
            )
        if len(network.factors()) == 1:
            raise UserError(
                f"{settings.model} has a single stage here; leave out stage_loss, stage_distill and "
                "stage_consistency, or give it a pyramid of two sizes, such as --model_kwargs.pyramid [1,0.5]"
            )
        if settings.stage_consistency and getattr(network.backbone, "drop_rate", 0):
            raise UserError(
                "stage_consistency compares features after dropout, whose mask differs from stage to stage; leave out "
                "model_kwargs.drop_rate"
            )
        network.set_stagewise_training(features=settings.stage_consistency > 0)
    return placed(network, settings, device)


def compiled(network: nn.Module) -> nn.Module:
    """Compiles a network of several stages in place, with a graph per stage; wraps any other in `torch.compile`.

    A graph per stage compiles faster than one graph of all stages, and Swin trains faster so (docs/performance.md).
    """
    if isinstance(network, MultiStageNet) and network.has_graph_per_stage:
        network.compile_stages(dynamic=None)  # as `torch.compile` does: the last batch of an evaluation is smaller
        return network
    whole: Any = torch.compile(network)
    return whole


def placed(network: Any, settings: Settings, device: torch.device) -> Any:
    """Returns the network on a device, in the memory order of the settings."""
    return network.to(device, memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)


def checkpoint_activations(network: Any, name: str) -> None:
    """Lets a network recompute its activations in the backward pass, with timm's `set_grad_checkpointing`.

    Raises:
        UserError: it cannot.
    """
    try:
        network.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{name} has no gradient checkpointing; leave out grad_checkpointing") from error


def synchronize_norms(network: nn.Module, name: str, device: torch.device) -> nn.Module:
    """Returns the network with batch norms over the images of all processes, with timm's `convert_sync_batchnorm`.

    What is shared stays shared, since the new modules take over the same parameters and buffers, and the activations
    in timm's norms.

    Raises:
        UserError: there is nothing to convert, or PyTorch cannot do it on this device.
    """
    if device.type == "cpu":
        raise UserError("sync_bn needs GPUs, since PyTorch's SyncBatchNorm does, and this is a CPU; leave it out")
    converted = convert_sync_batchnorm(network)
    if not any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()):
        raise UserError(f"{name} has no batch normalization; leave out sync_bn")
    return converted
