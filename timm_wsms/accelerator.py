"""Accelerate's object for the available processes, devices and precision, for training and evaluation alike."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from timm_wsms.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

# Longer than any hang_timeout: a collective that times out cannot say which process it waited for. The first
# process may also download the data for hours, while the others wait for it.
PATIENCE = timedelta(days=2)
# What `accelerate config` and `accelerate launch` set for training that splits a network among processes.
DIVIDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}


def build_accelerator(precision: str, trackers: Sequence[str] = (), output: str | None = None) -> "Accelerator":
    """Builds an `accelerate.Accelerator`.

    Args:
        precision: "no" (float32), "bf16" or "fp16".
        trackers: Accelerate's names for them; their packages are installed.
        output: the folder trackers write to.

    Raises:
        UserError: the device does not support the precision, or `accelerate config` asks to split the network.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    for variable, name in DIVIDED.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise UserError(
                f"accelerate is configured for {name}, which keeps a network in pieces; checkpoints and averages here "
                "hold whole ones, and stages share parameters across pieces: run `accelerate config` again for "
                "plain data parallelism (gradient checkpointing and accumulation need less memory too)"
            )
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(trackers) or None,
            project_dir=output,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except ValueError as error:
        raise UserError(f"precision {precision} is not available here: {error}") from error
    if precision != "no" and not accelerator.native_amp:  # Accelerate would silently compute in float32
        raise UserError(f"precision {precision} is not available on {accelerator.device.type}; choose another")
    if precision == "bf16" and accelerator.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        accelerator.print(
            "warning: this CPU has no instructions for bf16 (AVX-512 or AMX), so it is emulated, many times slower "
            "than float32; add --precision no"
        )
    return accelerator
