"""What torch.fx needs to trace a network: functions that look at sizes stay calls, backbones are called as modules.

Nothing outside this package is changed for this.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch.fx
from torch import nn

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def opaque(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function that a tracer records as one call instead of following it.

    Like `torch.fx.wrap`, which works only for calls from one file, and not where a traced network is traced again
    (`torch.fx.experimental.optimization.optimize_for_inference`).
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        proxy = _find_proxy((*args, *kwargs.values()))
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", call, args, kwargs)  # type: ignore[return-value]

    return call


def _find_proxy(values: Iterable[Any]) -> torch.fx.Proxy | None:
    for value in values:
        found = _find_proxy(value) if isinstance(value, (list, tuple)) else value
        if isinstance(found, torch.fx.Proxy):
            return found
    return None


class FeatureCall(nn.Module):
    """A backbone's `forward_features` as a module of its own, without parameters; for tracers and compilers.

    timm hands a tracer its functions that cannot be traced (`resample_abs_pos_embed` of a ViT with
    `dynamic_img_size`), and a tracer replaces them in the file of each module that it sees called. A network calls a
    method of its backbone, not the backbone; through this module the tracer sees the backbone's file all the same.

    Args:
        kind: Class of the backbone. The module is called with the backbone and its image.
    """

    def __init__(self, kind: Any):
        super().__init__()
        self.forward = kind.forward_features  # the function itself, in whose file the tracer looks
