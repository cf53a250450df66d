"""Fine-tunes a multi-stage network on a folder of images, without this repository's training script.

    python examples/bare_loop.py images --epochs 10

`images` has train/<class>/*.jpg and test/<class>/*.jpg. The network averages over the image and its half-size copy, and
is trained with a loss per stage. Everything else is plain PyTorch and timm. For resuming, several processes and
publishing see train_accelerate.py.
"""

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import timm_wsms  # noqa: F401  (registers the names)


def main(argv: list[str] | None = None) -> float:
    """Returns the accuracy on the test images, in %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="wsmean_resnet50.a1_in1k")
    parser.add_argument("--from_scratch", action="store_true", help="do not start from timm's weights")
    parser.add_argument("--input_size", type=int, help="side of the images in pixels; default: the model's own")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("outputs/bare_loop.safetensors"))
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # 1. Model and data. The transforms are timm's, for the model's own input size, mean and standard deviation.
    classes = sorted(path.name for path in (options.folder / "train").iterdir() if path.is_dir())
    pretrained = not options.from_scratch
    model = timm.create_model(options.model, pretrained=pretrained, num_classes=len(classes)).to(device)
    model.set_stagewise_training()
    config = resolve_model_data_config(model)
    if options.input_size:
        config["input_size"] = (3, options.input_size, options.input_size)
    loaders = {
        split: DataLoader(
            ImageFolder(options.folder / split, create_transform(**config, is_training=split == "train")),
            options.batch_size,
            shuffle=split == "train",
            num_workers=options.workers,
        )
        for split in ("train", "test")
    }
    if loaders["test"].dataset.classes != classes:
        raise SystemExit(f"{options.folder}/test has other classes than {options.folder}/train")

    # 2. Training: AdamW, cosine schedule, one loss for the average and one for each stage.
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.02)
    steps = options.epochs * len(loaders["train"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for epoch in range(options.epochs):
        model.train()
        for images, labels in loaders["train"]:
            images, labels = images.to(device), labels.to(device)
            logits = model(images).logits  # (stages, batch, classes)
            loss = F.cross_entropy(logits.mean(0), labels)
            loss = loss + torch.stack([F.cross_entropy(stage, labels) for stage in logits]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = evaluate(model, loaders["test"], device)
        print(f"epoch {epoch + 1}/{options.epochs}  loss {loss.item():.3f}  test accuracy {accuracy:.1f} %")

    # 3. The weights. Every shared tensor is saved once; load them with `model.load_state_dict`, or with
    #    timm.create_model(..., pretrained=True, pretrained_cfg_overlay={"file": ..., "num_classes": ...}).
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, options.output)
    print(f"saved {options.output}")
    return evaluate(model, loaders["test"], device)


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """Top-1 accuracy in %; in eval mode the network returns the averaged logits."""
    model.eval()
    right = [(model(images.to(device)).argmax(1).cpu() == labels).float() for images, labels in loader]
    return 100 * torch.cat(right).mean().item()


if __name__ == "__main__":
    main()
