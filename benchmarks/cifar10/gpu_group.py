"""Networks of one form and several seeds that are trained at once on a GPU, a step of all of them in one CUDA graph.

At 16 channels and batch 128 a kernel takes a few microseconds, about as long as launching it; so a step is recorded
once and replayed. Nothing in it waits for the processor: images, labels and learning rate are tensors on the GPU.

Several seeds are *stacked* by `torch.vmap`, which turns their convolutions into grouped ones and their batch norms into
one of more channels. Or each has a group of its own, and the groups run side by side, on streams of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, vmap

from benchmarks.cifar10.gpu_data import Augmenter
from benchmarks.cifar10.gpu_forms import BATCH, Form, build, loss_of, norms
from benchmarks.cifar10.gpu_norms import fuse_norms, stack_norms
from benchmarks.cifar10.gpu_state import Parameters

State = dict[str, torch.Tensor]


class SeedGroup:
    """Networks of several seeds, stacked.

    Args:
        form: Of the table.
        seeds: One network each. Its start and its epochs are functions of the seed alone.
        steps: Of an epoch.
        device: A GPU; on a CPU nothing is recorded and each step is run as it is.
        batch: Images of a step.
        dtype: Of activations and of the weights of convolutions; norms, statistics and master weights are float32.
        master: Of master weights and momentum; float64 for tests.
        norm_act: A compiled `gpu_norms.norm_act`, for a single seed.
    """

    def __init__(
        self,
        form: Form,
        seeds: Sequence[int],
        steps: int,
        device: torch.device,
        batch: int = BATCH,
        dtype: torch.dtype = torch.bfloat16,
        master: torch.dtype = torch.float32,
        norm_act: Any = None,
    ):
        self.form, self.seeds, self.steps, self.device, self.master = form, tuple(seeds), steps, device, master
        networks = [build(form, seed) for seed in seeds]
        self.network = networks[0].to(device)  # whose own tensors are not used, only its way of computing
        if norm_act is not None:
            fuse_norms(self.network, norm_act)
        if len(seeds) > 1:
            stack_norms(self.network)
        named = [dict(network.named_parameters()) for network in networks]
        of_norms = {id(own) for norm in norms(networks[0]) for own in norm.parameters()}
        fine = [name for name, own in networks[0].named_parameters() if id(own) in of_norms]
        coarse = [name for name in named[0] if name not in fine]
        self.segments = [
            Parameters({name: [one[name] for one in named] for name in names}, device, work, master)
            for names, work in ((coarse, dtype), (fine, master))
        ]
        buffers = [dict(network.named_buffers()) for network in networks]
        self.buffers = {
            name: torch.stack([one[name].detach() for one in buffers]).to(device, master) for name in buffers[0]
        }  # each in memory of its own: compiled functions change some of them in place
        n, side = len(seeds), networks[0].default_cfg["input_size"][-1]
        self.images = torch.zeros(n, steps * batch, side, side, 3, dtype=dtype, device=device)
        self.labels = torch.zeros(n, steps * batch, dtype=torch.int64, device=device)
        self.of_step = torch.arange(batch, device=device)
        self.position = torch.zeros((), dtype=torch.int64, device=device)  # the step of the epoch
        self.lr = torch.zeros((), dtype=master, device=device)
        self.loss_sum = torch.zeros(n, dtype=master, device=device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def begin_epoch(self, augmenter: Augmenter, epoch: int, lr: float) -> None:
        """Puts the epoch's images in place."""
        with self.on_stream():
            for seed, images, labels in zip(self.seeds, self.images, self.labels, strict=True):
                augmenter.fill(seed, epoch, images, labels)
            self.lr.fill_(lr)
            self.position.zero_()
            self.loss_sum.zero_()

    def step(self) -> None:
        """One step of every seed; on a GPU it is only asked for."""
        with self.on_stream():
            if self.graph is None:
                self.compute()
            else:
                self.graph.replay()

    def record(self) -> None:
        """Makes a CUDA graph of a step. The steps that this takes leave no trace."""
        torch.cuda.synchronize(self.device)
        mutable = [*(one for segment in self.segments for one in segment.state()), *self.buffers.values()]
        mutable += [self.position, self.loss_sum]
        saved = [one.clone() for one in mutable]
        with self.on_stream():
            for _ in range(3):
                self.position.zero_()
                self.compute()
        torch.cuda.synchronize(self.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.compute()
        for one, before in zip(mutable, saved, strict=True):
            one.copy_(before)
        for segment in self.segments:
            segment.refresh()
        torch.cuda.synchronize(self.device)

    def compute(self) -> None:
        """Forward and backward pass and update by momentum SGD, from the step's images to `position` + 1."""
        picked = self.position * len(self.of_step) + self.of_step
        images = self.images.index_select(1, picked).permute(0, 1, 4, 2, 3)  # (n, B, 3, 32, 32), channels last
        labels = self.labels.index_select(1, picked)
        leaves = {name: leaf for segment in self.segments for name, leaf in segment.leaves.items()}
        if len(self.seeds) > 1:
            losses = vmap(self._loss)(leaves, self.buffers, images, labels)
        else:
            single = {name: buffer[0] for name, buffer in self.buffers.items()}
            losses = self._loss(leaves, single, images[0], labels[0])[None]
        gradients = torch.autograd.grad(losses.sum(), [*leaves.values()])
        for segment in self.segments:
            own, gradients = gradients[: len(segment.leaves)], gradients[len(segment.leaves) :]
            segment.update(own, self.lr)
        self.loss_sum += losses.detach()
        self.position += 1

    def _loss(self, parameters: State, buffers: State, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss_of(functional_call(self.network, (parameters, buffers), (images,)), labels, self.master)

    def train_loss(self) -> list[float]:
        """Of each seed, mean over the epoch so far."""
        return (self.loss_sum / self.position.clamp(min=1)).tolist()

    def state(self, index: int) -> State:
        """What a checkpoint of one seed holds, on the CPU."""
        tensors = {f"buffers.{name}": buffer[index].cpu().clone() for name, buffer in self.buffers.items()}
        for segment in self.segments:
            tensors |= segment.save(index)
        return tensors

    def load(self, index: int, tensors: State) -> None:
        """Continues one seed from its checkpoint."""
        for name, buffer in self.buffers.items():
            buffer[index].copy_(tensors[f"buffers.{name}"])
        for segment in self.segments:
            segment.load(index, tensors)

    @torch.no_grad()
    def predict(self, index: int, images: torch.Tensor, chunk: int = 1000) -> np.ndarray:
        """Normalized images (N, 32, 32, 3) → the classes that one network says, int64 (N,), in float32."""
        parameters = {name: own for segment in self.segments for name, own in segment.masters(index).items()}
        buffers = {name: buffer[index] for name, buffer in self.buffers.items()}
        self.network.eval()
        batches = images.to(self.master).permute(0, 3, 1, 2).split(chunk)
        said = [functional_call(self.network, (parameters, buffers), (batch,)).argmax(1) for batch in batches]
        self.network.train()
        return torch.cat(said).cpu().numpy()
