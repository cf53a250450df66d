"""Parameters of several networks of one kind in a few long tensors, so that an update takes a few kernels in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from benchmarks.cifar10.gpu_forms import MOMENTUM, WEIGHT_DECAY


class Parameters:
    """Master weights and momentum of n networks, and the copy of the weights that the forward pass takes.

    Parameter after parameter, of each the n networks' one after the other: so a parameter of all networks is one piece,
    as `vmap` wants it, and of each network too. Convolutions' weights lie as channels-last ones do.

    Args:
        tensors: Name → the parameter of every network.
        device: Where they are to be.
        work: Dtype of the copy.
        master: Dtype of master weights and momentum.

    Attributes:
        leaves: Name → (n, *shape) of the copy, or (*shape) of a single network; gradients are taken by them.
    """

    def __init__(
        self,
        tensors: Mapping[str, Sequence[torch.Tensor]],
        device: torch.device,
        work: torch.dtype,
        master: torch.dtype,
    ):
        self.shapes = {name: several[0].shape for name, several in tensors.items()}
        pieces = [_flat(one.detach()) for several in tensors.values() for one in several]
        self.n = len(pieces) // max(1, len(self.shapes))
        self.master = torch.cat(pieces).to(device, master)
        self.momentum = torch.zeros_like(self.master)
        self.work = self.master if work == master else self.master.to(work)
        views = self._views(self.work)
        self.leaves = {
            name: (view[0] if self.n == 1 else view).detach().requires_grad_() for name, view in views.items()
        }

    @torch.no_grad()
    def update(self, gradients: Sequence[torch.Tensor], lr: torch.Tensor) -> None:
        """PyTorch's momentum SGD, with weight decay on all parameters."""
        first = 0 if self.n == 1 else 1  # dimensions in front of a parameter's own
        flat = torch.cat([_flat(gradient, first) for gradient in gradients])
        self.momentum.mul_(MOMENTUM).add_(flat).add_(self.master, alpha=WEIGHT_DECAY)
        self.master.addcmul_(self.momentum, lr, value=-1)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the copy up to date with the master weights."""
        if self.work is not self.master:
            self.work.copy_(self.master)

    def state(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.master, self.momentum

    def masters(self, index: int) -> dict[str, torch.Tensor]:
        """One network's master weights."""
        return {name: view[index] for name, view in self._views(self.master).items()}

    def momenta(self, index: int) -> dict[str, torch.Tensor]:
        """One network's momentum."""
        return {name: view[index] for name, view in self._views(self.momentum).items()}

    def save(self, index: int) -> dict[str, torch.Tensor]:
        """One network's master weights and momentum, contiguous, on the CPU."""
        kinds = {"parameters": self.master.cpu(), "momentum": self.momentum.cpu()}  # two copies, not hundreds
        return {
            f"{kind}.{name}": view[index].contiguous().clone()
            for kind, flat in kinds.items()
            for name, view in self._views(flat).items()
        }

    @torch.no_grad()
    def load(self, index: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts what `save` gave into one network's place."""
        for kind, flat in (("parameters", self.master), ("momentum", self.momentum)):
            for name, view in self._views(flat).items():
                view[index].copy_(tensors[f"{kind}.{name}"])
        self.refresh()

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes = [self.n * shape.numel() for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), flat.split(sizes), strict=True)
        return {name: _shaped(piece, self.n, shape) for (name, shape), piece in pieces}


def _flat(tensor: torch.Tensor, first: int = 0) -> torch.Tensor:
    """(…, O, I, h, w) → (… · O · h · w · I,), others in their own order."""
    return (tensor.movedim(first + 1, -1) if tensor.ndim - first == 4 else tensor).reshape(-1)


def _shaped(piece: torch.Tensor, n: int, shape: torch.Size) -> torch.Tensor:
    """The inverse of `_flat`: (n, O, I, h, w), a view."""
    if len(shape) != 4:
        return piece.view(n, *shape)
    out, into, height, width = shape
    return piece.view(n, out, height, width, into).movedim(-1, 2)
