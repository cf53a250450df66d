"""The checks that coverage.py runs on each name, and how a network is built for them cheaply."""

from __future__ import annotations

import contextlib
import gc
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import DropPath
from torch import nn

import timm_wsms
from benchmarks.common.random_networks import cheap_random_numbers, trained
from timm_wsms import UserError
from timm_wsms.network.weight_sharing import SkipInit

CHECKS = ("forward", "backward", "state_dict", "warm_start")
META_ABOVE = 300_000_000  # parameters
SIDES = (64, 128, 192)  # of the image, in pixels: tried from the smallest
NO_GRADIENT = "no gradient for"
ASKS_FOR_VALUES = "cannot be called on meta tensors"  # gemma4_vit: then there is no way but to compute
BATCH = 2  # batch normalization needs more than one value

Row = dict[str, str]


class OutOfTimeError(BaseException):
    """Not an Exception, so that no `except` on the way takes it for a failed check."""


def check(row: Row, timeout: int = 300, **form: Any) -> Row:
    """Tries one name.

    Args:
        row: With `name` and `backbone_params`.
        timeout: Seconds of processor time after which the name counts as failed.
        **form: Arguments that the backbone and the network are built with, such as fewer blocks.

    Returns:
        The row with `wsms_params`, `input_size`, `checked`, the four checks ("ok", "failed", or "" if not reached),
        `cpu_seconds` and `error`. For a name that timm_wsms refuses `checked` is "not staged" and `error` the reason.
    """
    row = row | dict.fromkeys(("wsms_params", "input_size", *CHECKS, "error"), "")
    row["checked"] = "meta" if int(row["backbone_params"]) > META_ABOVE else "real"
    if reason := timm_wsms.why_not(f"wsms_{row['name']}"):
        return row | {"checked": "not staged", "error": f"not staged: {reason}", "cpu_seconds": "0.0"}
    started = time.process_time()
    try:
        with time_limit(timeout), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if row["checked"] == "meta":
                _check_meta(row, form)
            if row["checked"] == "real" or ASKS_FOR_VALUES in row["error"]:
                row |= {"checked": "real", "error": ""}
                _check_real(row, form)
    except (Exception, OutOfTimeError) as error:  # whatever goes wrong with one name, the others are tried
        row["error"] = one_line(error)
    gc.collect()
    row["cpu_seconds"] = f"{time.process_time() - started:.1f}"
    return row


def _check_real(row: Row, form: dict[str, Any]) -> None:
    wsms = f"wsms_{row['name']}"
    plain, cold, images, arguments = _build(row, form)
    expected = _logits(plain, images)
    with tempfile.TemporaryDirectory() as folder, cheap_random_numbers():
        file = Path(folder) / "weights.safetensors"
        save_file({key: tensor.clone() for key, tensor in plain.state_dict().items()}, file)  # CoaT has some twice
        del plain
        networks = []

        def warm_start() -> str:
            pretrained = arguments | {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
            try:
                networks.append(timm.create_model(wsms, **pretrained))
            except UserError:
                if _builds(row["name"], pretrained):
                    raise
                # vit_base_resnet50d_224 and its like first fetch another network's weights
                networks.append(timm.create_model(wsms, checkpoint_path=str(file), **arguments))
            found = _logits(networks[0], images)
            if torch.equal(found, expected):
                return ""
            networks.clear()  # fbnetc_100 and some others have another epsilon with pretrained=True
            return _difference(found, _logits(timm.create_model(row["name"], **pretrained), images))

        def state_dict() -> str:
            second = networks[0] if networks else timm.create_model(wsms, **arguments)
            save_file({key: tensor.contiguous() for key, tensor in cold.state_dict().items()}, file)
            second.load_state_dict(load_file(file), strict=True)
            return _difference(_logits(second, images), _logits(cold, images))

        _note(row, "warm_start", warm_start)
        _note(row, "state_dict", state_dict)


def _build(row: Row, form: dict[str, Any]) -> tuple[Any, Any, torch.Tensor, dict[str, Any]]:
    """Tries forward and backward from the smallest images on, until both pass.

    Returns:
        Backbone, network, images, and the arguments that both were built with.
    """
    built = None
    for shape, arguments in _input_sizes(row["name"], form):
        images = torch.randn(BATCH, *shape)
        row |= {"input_size": _size(images), "error": ""}
        try:
            with cheap_random_numbers():
                network = trained(timm.create_model(f"wsms_{row['name']}", **arguments))
                plain = trained(timm.create_model(row["name"], **arguments))
        except Exception as error:  # too small an image, perhaps
            row["error"] = one_line(error)
        else:
            built = plain, network, images, arguments
            row["wsms_params"] = _count(network)
            _note(row, "forward", lambda: _forward(*built[:3]))  # noqa: B023  called at once
            _note(row, "backward", lambda: _without_gradient(built[1]))  # noqa: B023
            # attention among one token only has gradients of zeros: at a larger size that may not be so
            if row["forward"] == "ok" and (row["backward"] == "ok" or NO_GRADIENT in row["error"]):
                break
    if built is None:
        raise RuntimeError(row["error"])
    return built


def _builds(name: str, arguments: dict[str, Any]) -> bool:
    try:
        timm.create_model(name, **arguments)
    except Exception:  # whatever timm raises
        return False
    return True


def _forward(plain: nn.Module, network: nn.Module, images: torch.Tensor) -> str:
    expected = _logits(plain, images)
    for module in network.modules():
        if isinstance(module, DropPath):  # a block that both images skip has gradients of zeros
            module.drop_prob = 0.0
    output = network.train()(images)
    (output * torch.randn_like(output)).sum().backward()  # a plain sum is constant after batch normalization
    same = output.shape == expected.shape and bool(output.isfinite().all())
    return "" if same else f"{tuple(output.shape)}, not all finite or not {tuple(expected.shape)}"


def _check_meta(row: Row, form: dict[str, Any]) -> None:
    """The same without memory and arithmetic, at the backbone's own size, as far as that can tell."""
    with torch.device("meta"):
        plain: Any = timm.create_model(row["name"], **form)
        network, second = (timm.create_model(f"wsms_{row['name']}", **form).train() for _ in range(2))
        images = torch.zeros(BATCH, *plain.default_cfg["input_size"])
        row |= {"wsms_params": _count(network), "input_size": _size(images)}

        def forward() -> str:
            output, expected = network(images), plain(images)
            output.sum().backward()
            return "" if output.shape == expected.shape else f"{tuple(output.shape)}, not {tuple(expected.shape)}"

        def state_dict() -> str:
            second.load_state_dict(network.state_dict(), strict=True)
            return ""

        def warm_start() -> str:
            shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
            own = plain.state_dict().items()
            lacking = [key for key, tensor in own if shapes.get(f"backbone.{key}") != tensor.shape]
            return f"not in the state dict: {_some(lacking)}" if lacking else ""

        _note(row, "forward", forward)
        _note(row, "backward", lambda: _without_gradient(network))
        _note(row, "state_dict", state_dict)
        _note(row, "warm_start", warm_start)


def _note(row: Row, what: str, function: Callable[[], str]) -> None:
    """Writes the verdict of one check into the row: `function` returns what is wrong, or raises it."""
    try:
        problem = function()
    except Exception as error:  # one check fails, the next is tried
        problem = one_line(error)
    row[what] = "failed" if problem else "ok"
    if problem:
        row["error"] += f"{'; ' * bool(row['error'])}{what}: {problem}"


def _input_sizes(name: str, form: dict[str, Any]) -> Iterator[tuple[tuple[int, int, int], dict[str, Any]]]:
    """(channels, height, width) from the smallest, each with the arguments that build a backbone for it."""
    with torch.device("meta"), SkipInit():
        backbone: Any = timm.create_model(name, **form)
        channels, _, own = backbone.default_cfg["input_size"]
        fixed = backbone.default_cfg.get("fixed_input_size")
        resizable = False
        if fixed:
            with contextlib.suppress(TypeError):  # not all of them know the argument
                timm.create_model(name, img_size=own, **form)
                resizable = True
    reductions = {entry["reduction"] for entry in backbone.feature_info}
    patch = max(reductions) if len(reductions) == 1 else 1
    least = max(backbone.default_cfg.get("min_input_size") or (0,))
    sides = [side + -side % (4 * patch) for side in (*SIDES, least)]  # a quarter of the side is whole patches too
    sides = [side for side in sides if least <= side < own] + [own]
    for side in dict.fromkeys(sides):
        yield (channels, side, side), form | ({"img_size": side} if resizable else {})


# ---- words and numbers


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    if not expected.isfinite().all():
        return "the logits to compare with are not finite"
    return "" if torch.equal(found, expected) else f"logits differ by {(found - expected).abs().max():.2g}"


def _without_gradient(model: nn.Module) -> str:
    parameters = dict(model.named_parameters())
    lacking = [key for key, tensor in parameters.items() if tensor.grad is None]
    zero = [key for key, tensor in parameters.items() if not tensor.is_meta and tensor.grad is not None]
    zero = [key for key in zero if not parameters[key].grad.any()]
    text = f"{NO_GRADIENT} {_some(lacking)}" if lacking else ""
    return text + f"{' and ' * bool(text)}a gradient of zeros for {_some(zero)}" if zero else text


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" … ({len(keys)})" if len(keys) > 3 else "")


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _count(model: nn.Module) -> str:
    return str(sum(parameter.numel() for parameter in model.parameters()))


def _size(images: torch.Tensor) -> str:
    return "x".join(map(str, images.shape[-2:]))


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises OutOfTimeError after so many seconds of processor time, which other programs cannot use up."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
