"""Running statistics for the stages that see smaller images: `timm_wsms.recalibrate(model, batches)`.

A network that starts from a backbone's weights also starts its stages 2… with the backbone's running statistics, which
were computed on the whole image. On images of half and a quarter of the size, the statistics are different.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.features import WsmsFeatures

BatchNorm = nn.modules.batchnorm._BatchNorm  # private, but the one base class of 1d, 2d, 3d and the synchronized norm


@torch.no_grad()
def recalibrate(model: MultiStageNet | WsmsFeatures, batches: Iterable[Any]) -> int:
    """Re-estimate the running mean and variance of the batch norms of stages 2… and of the integration layers.

    Each becomes the mean and the unbiased variance of all values that reach the norm in one pass over the batches, so
    that neither the order of the images nor a smaller last batch matters. In this pass these norms normalize by
    their batch, as in training: what reaches a deeper norm then doesn't depend on the statistics being replaced, and
    all are done at once. In eval mode the inputs differ a little, less with larger batches; about 64 images
    per batch and a thousand in total are enough. Everything else runs as in eval mode: no dropout, and stage 1, whose
    statistics suit its images, keeps them. Parameters don't change.

    Args:
        model: A multi-stage network of any form, with `features_only` or without, not wrapped (DDP, compiled). It is
            changed in place; its mode, training or eval, stays.
        batches: Images as in training, float (B, C, H, W), or tuples or lists that hold them first, or objects that
            hold them as `.images`. They are moved to the model's device and type.

    Returns:
        The number of norms whose statistics were replaced.

    Raises:
        UserError: If there are no images, a batch holds something else, values that reach a norm are not finite, or
            there are no batch norms to recalibrate. The network is then as it was.
    """
    network = model.model if isinstance(model, WsmsFeatures) else model
    if not isinstance(network, MultiStageNet):
        raise UserError(f"recalibrate takes a multi-stage network, not {type(model).__name__}; unwrap it first")
    norms = _own_batch_norms(network)
    if not norms:
        raise UserError("nothing to recalibrate: stages 2… and the integration layer have no batch norms of their own")
    gathered = {norm: _Moments() for norm in norms}
    handles = [norm.register_forward_pre_hook(moments.add) for norm, moments in gathered.items()]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms:
        norm.training, norm.track_running_stats = True, False  # normalizes by the batch and stores nothing
    try:
        _run(model, batches, next(model.parameters()))
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.track_running_stats = True
        for module, mode in modes.items():
            module.training = mode
    reached = {norm: moments for norm, moments in gathered.items() if moments.count}
    if not all(moments.is_finite() for moments in reached.values()):
        raise UserError(
            "values that are not finite reached a norm, so nothing was replaced; check the images for NaN and "
            "infinity, or recalibrate in float32"
        )
    for norm, moments in reached.items():
        moments.store(norm)
    return len(reached)


def _own_batch_norms(model: MultiStageNet) -> list[BatchNorm]:
    """The batch norms outside stage 1 that keep running statistics which stage 1 doesn't use as well."""
    stage1 = {id(buffer) for buffer in model.backbone.buffers()}
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None and id(norm.running_mean) not in stage1]


def _run(forward: Callable[[torch.Tensor], Any], batches: Iterable[Any], like: torch.Tensor) -> None:
    empty = True
    for batch in batches:
        images = getattr(batch, "images", batch[0] if isinstance(batch, (tuple, list)) and batch else batch)
        if not (isinstance(images, torch.Tensor) and images.is_floating_point() and images.ndim == 4):
            found = f"{images.dtype} {(*images.shape,)}" if isinstance(images, torch.Tensor) else type(images).__name__
            raise UserError(f"a batch must be or begin with float images (B, C, H, W), normalized; not {found}")
        if not len(images):
            continue
        try:
            forward(images.to(like.device, like.dtype))
        except UserError:
            raise
        except ValueError as error:  # PyTorch's, for a map of one pixel of one image
            raise UserError(f"a batch of {len(images)} is too small to take a variance ({error})") from error
        empty = False
    if empty:
        raise UserError("there are no images to recalibrate on; give an iterable of batches")


class _Moments:
    """Mean and variance of each channel over all that was added (Chan, Golub and LeVeque's update)."""

    def __init__(self) -> None:
        self.batches, self.count = 0, 0
        self.mean: Any = 0.0  # (C,)
        self.squares: Any = 0.0  # (C,), sum of squared differences from the mean

    def add(self, _norm: nn.Module, args: tuple[torch.Tensor]) -> None:
        """Add a norm's input (B, C, …)."""
        x = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
        added = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)  # (C,) each
        difference = mean - self.mean
        total = self.count + added
        self.squares = self.squares + variance * added + difference.square() * (self.count * added / total)
        self.mean = self.mean + difference * (added / total)
        self.batches, self.count = self.batches + 1, total

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.squares).all())

    def store(self, norm: Any) -> None:
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squares / (self.count - 1))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(self.batches)
