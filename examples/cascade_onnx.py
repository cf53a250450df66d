"""A cascade in onnxruntime: a graph per stage, and the larger images only where the smaller ones leave doubt.

    python examples/cascade_onnx.py hub/models/wsms_resnet20_sizes_cifar10 outputs

PyTorch exports the graphs, and nothing but onnxruntime and NumPy runs them.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

import timm_wsms


def export(stages: list[torch.nn.Module], size: tuple[int, int, int], folder: Path) -> list[str]:
    """Writes a graph for each stage, in the order in which they run; any batch size, one image size (C, H, W)."""
    like, dynamic = torch.zeros(2, *size), ({0: torch.export.Dim("batch")},)
    paths = [str(folder / f"stage{number}.onnx") for number in range(1, len(stages) + 1)]
    for stage, path in zip(stages, paths, strict=True):
        torch.onnx.export(stage, (like,), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    return paths


class OnnxCascade:
    """What `timm_wsms.Cascade` computes: images (B, C, H, W) → logits (B, classes), averaged over the stages taken."""

    def __init__(
        self,
        paths: list[str],
        confidence: list[float],
        temperatures: list[float],
        options: onnxruntime.SessionOptions | None = None,
    ):
        self.sessions = [onnxruntime.InferenceSession(path, options) for path in paths]
        self.thresholds = [*zip(confidence, temperatures, strict=True), (0.0, 1.0)]  # at the last exit, all leave

    def __call__(self, images: np.ndarray) -> np.ndarray:
        undecided, total, answer = np.arange(len(images)), 0.0, None
        for taken, (session, (least, heat)) in enumerate(zip(self.sessions, self.thresholds, strict=True), start=1):
            total = total + session.run(None, {session.get_inputs()[0].name: images[undecided]})[0]
            answer = np.empty((len(images), total.shape[1]), total.dtype) if answer is None else answer
            answer[undecided] = total / taken
            powers = np.exp((total - total.max(1, keepdims=True)) / taken / heat)
            rest = powers.max(1) / powers.sum(1) < least
            undecided, total = undecided[rest], total[rest]
            if not len(undecided):
                break
        return answer


def main(folder: str, output: str = ".", images: int = 8) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    cascade = timm_wsms.Cascade(model, confidence=0.8)
    x = torch.randn(images, *model.pretrained_cfg["input_size"])
    paths = export(cascade.stages, x.shape[1:], Path(output))
    found = OnnxCascade(paths, cascade.confidence, cascade.temperatures)(x.numpy())
    print(f"largest difference from PyTorch: {np.abs(found - cascade(x).numpy()).max():.1e}\n{cascade.summary()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
