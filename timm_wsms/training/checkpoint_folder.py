"""The folder that a run writes and timm loads. Safetensors and JSON, no pickle."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from timm_wsms.files import write_tensors
from timm_wsms.timm_private import save_config_for_hf

RUN = ("settings.yaml", "metrics.jsonl")  # what distinguishes one training run from another


def save_model_folder(
    model: nn.Module,
    folder: Path,
    data_config: Mapping[str, Any],
    class_names: list[str],
    example: torch.Tensor,
    **metadata: str,
) -> None:
    """Writes a folder that `timm.create_model("local-dir:<folder>", pretrained=True)` loads.

    `test/tensors.safetensors` in it holds `input`, `features`, `pre_logits` and `logits`, in float32 and eval mode on
    the CPU, for checking that a loaded model still computes the same.

    Args:
        model: without wrappers; not modified.
        folder: where, usually from `atomic_folder`.
        data_config: the preprocessing the model was trained with, as `timm.data.resolve_data_config` returns it.
        class_names: one for each logit.
        example: images (b, channels, height, width) for the test tensors; anyone with the folder can see them.
        metadata: further metadata for the weights' file; `run`, the `run_hash`.
    """
    write_tensors(folder / "model.safetensors", model.state_dict(), **metadata)
    save_config_for_hf(
        model,
        str(folder / "config.json"),
        model_config={"label_names": list(class_names)},
        data_config=dict(data_config),
    )
    leave_out_num_classes(folder / "config.json")
    (folder / "test").mkdir()
    write_tensors(folder / "test" / "tensors.safetensors", reference_tensors(model, example))


def leave_out_num_classes(config: Path) -> None:
    """timm writes the number of classes into `model_args` too, where transformers' timm wrapper would meet it twice."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content.get("model_args", {}).pop("num_classes", None)
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run_hash(folder: Path) -> str:
    """SHA-256 of a run's settings and metrics in a folder: the name of the run in its weights' file."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in RUN)).hexdigest()


def reference_images(input_size: Sequence[int]) -> torch.Tensor:
    """Two images of noise, (2, C, H, W), for the test tensors: a published folder then shows nobody's pictures."""
    return torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))


def reference_tensors(model: Any, images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Returns `input`, `features`, `pre_logits` and `logits` of a float32 pass in eval mode on the CPU.

    Features other than a single tensor are left out. By default the images are `reference_images` of the model's size.
    """
    images = reference_images(model.pretrained_cfg["input_size"]) if images is None else images
    # In the memory order of a model that was just loaded; another may select other kernels, which round differently.
    model = copy.deepcopy(model).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()
    images = images.cpu()
    with torch.no_grad():
        features = model.forward_features(images)
        tensors = {
            "input": images,
            "features": features,
            "pre_logits": model.forward_head(features, pre_logits=True),
            "logits": model(images),
        }
    # Copies, since pre-logits may be a view of the features.
    return {name: tensor.clone() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
