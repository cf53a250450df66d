"""Stages in parallel, in threads or on CUDA streams: at batch 1, small stages leave most of a machine idle."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.layouts import fit
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.tracing import is_traced, refuse
from timm_wsms.network.wsms_net import WsmsNet

NOT_COMPILED = "parallel_stages runs threads, which cannot be compiled or exported; compile or export the model itself"
NOT_TRAINED = "parallel_stages is for inference; call model.eval() first, and train the model itself"


def parallel_stages(model: MultiStageNet, threads_per_stage: int = 1) -> "ParallelStages":
    """Let a network run its stages in parallel: for inference with small batches.

    ```python
    fast = timm_wsms.parallel_stages(model.eval())
    logits = fast(image)
    fast = torch.cuda.make_graphed_callables(fast, (image,))  # on a GPU: one CUDA graph, for images of this shape
    ```

    On a CPU each stage has a thread of its own, on a GPU a stream. A CUDA graph saves the time of launching kernels.
    (Not run on a GPU yet.)

    With as many cores as stages, the network then takes about as long as its slowest stage; with fewer, stages wait for
    one another. With large batches, and for backbones of few large operators (ViT), the operators already use all
    cores, and this is slower: measure it.

    Args:
        model: In eval mode. It is shared, not copied.
        threads_per_stage: Number of intra-op threads per stage. While the network runs, `torch.set_num_threads` is
            set to it, for the whole process.

    Raises:
        UserError: If the model has no stages to run side by side, or is in training mode; later, if the result is
            compiled, exported or traced.
    """
    return ParallelStages(model, threads_per_stage)


class ParallelStages(nn.Module):
    """See `parallel_stages`.

    Args:
        model: In eval mode.
        threads_per_stage: Number of intra-op threads per stage.
    """

    def __init__(self, model: MultiStageNet, threads_per_stage: int = 1):
        super().__init__()
        if not isinstance(model, (WsmsNet, WsmsMeanNet)):
            raise UserError(f"parallel_stages takes a wsms_, ms_ or wsmean_ network, not {type(model).__name__}")
        if threads_per_stage < 1:
            raise UserError(f"threads_per_stage must be at least 1, not {threads_per_stage}")
        self.model, self.threads_per_stage = model, threads_per_stage
        self._threads: ThreadPoolExecutor | None = None
        self.train(model.training)

    def train(self, mode: bool = True) -> "ParallelStages":
        """As in PyTorch.

        Raises:
            UserError: In training mode.
        """
        if mode:
            raise UserError(NOT_TRAINED)
        super().train(mode)
        return self

    def compile(self, *_args: Any, **_kwargs: Any) -> None:
        """Not supported.

        Raises:
            UserError: Always.
        """
        raise UserError(NOT_COMPILED)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, num_classes), the model's output; without gradients.

        Raises:
            UserError: If the model has been put into training mode since, or if this is compiled, exported or traced;
                `torch.compile` reports it as an error of its own, with the same message.
        """
        if torch.compiler.is_compiling() or is_traced(x):
            refuse(NOT_COMPILED)
        if self.model.training:
            raise UserError(NOT_TRAINED)
        with torch.no_grad(), _threads_in_operators(self.threads_per_stage):
            if isinstance(self.model, WsmsMeanNet):
                return self._mean(self.model, x)
            return self._concat(self.model, x)

    def _mean(self, model: WsmsMeanNet, x: torch.Tensor) -> torch.Tensor:
        if model.global_pool == "":
            return model(x)
        images, parts = model.pyramid(x), model.backbones()
        stages: list[Any] = [model.stage1_features, *model.stages.values()]
        tasks = [partial(_logits, stage, part, image) for stage, part, image in zip(stages, parts, images, strict=True)]
        return torch.stack(self._run(tasks)).mean(0)

    def _concat(self, model: WsmsNet, x: torch.Tensor) -> torch.Tensor:
        if model.integration is None:
            return model(x)
        images, stages = model.pyramid(x), model.shallow_stages()
        padded = [stage.pad(image) for stage, image in zip(stages, images[1:], strict=True)]
        last = [max(stage.taps) for stage in stages]
        tasks: list[Callable[[], Any]] = [partial(model.stage1_map, images[0])]
        tasks += [partial(stage.own_maps, image, [at]) for stage, image, at in zip(stages, padded, last, strict=True)]
        (features, f1), *others = self._run(tasks)
        maps = [fit(own[at], f1, *sizes) for own, at, *sizes in zip(others, last, padded, images[1:], strict=True)]
        return model.forward_head(model.merged(features, model.integration([f1, *maps])))

    def _run(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """The results of all tasks; the first runs in this thread."""
        if _is_on_gpu(self.model):
            return _run_on_streams(tasks)
        if self._threads is None:
            inside = self.threads_per_stage
            beside = max(1, min(len(tasks) - 1, usable_cores() // inside - 1))
            self._threads = ThreadPoolExecutor(beside, initializer=torch.set_num_threads, initargs=(inside,))
        context = _Context()
        others = [self._threads.submit(context.run, task) for task in tasks[1:]]
        return [tasks[0](), *(other.result() for other in others)]

    def __getstate__(self) -> dict[str, Any]:
        """Without the threads: a copy starts its own."""
        return {**self.__dict__, "_threads": None}


def _is_on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _run_on_streams(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of all tasks; the first runs on the current stream, which waits for the others' at the end."""
    current = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in tasks[1:]]  # from PyTorch's pool
    others = []
    for stream, task in zip(streams, tasks[1:], strict=True):
        stream.wait_stream(current)  # the images are computed there
        with torch.cuda.stream(stream):
            others.append(task())
    results = [tasks[0](), *others]
    for stream in streams:
        current.wait_stream(stream)
    for tensor in _tensors(others):
        tensor.record_stream(current)  # its memory must not be reused before it was used there
    return results


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


class _Context:
    """PyTorch's thread-local modes: those of the thread that creates this hold in the one that runs a task."""

    def __init__(self) -> None:
        self.inference = torch.is_inference_mode_enabled()
        self.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(self, task: Callable[[], Any]) -> Any:
        enabled, dtype = self.autocast
        mode = torch.inference_mode() if self.inference else torch.no_grad()
        with mode, torch.autocast("cpu", dtype, enabled):
            return task()


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _threads_in_operators(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _logits(features: Callable[[torch.Tensor], Any], backbone: Any, image: torch.Tensor) -> torch.Tensor:
    return backbone.forward_head(features(image))
