"""Accuracy against object size of the CIFAR-10 networks that come with the repository.

    python -m benchmarks.object_size.kept_models --source ../shared/data/cifar10

All were trained at size 1 only. Runs `timm_wsms.scale`: curves of the plain network beside the paper's form, with a
gallery, and beside the one that averages, on the whole test set; what each stage of the paper's form carries on its
first images. Figures go to benchmarks/results/, pictures to docs/.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from benchmarks.common.environment import ROOT, record
from timm_wsms import object_size

PLAIN, PAPER, AVERAGING = (
    str(ROOT / "hub/models" / name)
    for name in ("resnet20_cifar10", "wsms_resnet20_cifar10", "wsms_resnet20_sizes_cifar10")
)
PICTURES = {
    "scale": "scale",
    "gallery": "scale_gallery",
    "stages": "scale_stages",
    "heat_wsms_resnet20_cifar10": "scale_heat",
    "averaging/scale": "scale_averaging",
}


def measure(folder: Path, models: list[str], *words: str) -> dict:
    """What the command writes about some models, its pictures in `folder`."""
    object_size.main([*models, *words, "--output", str(folder), "--json", str(folder / "figures.json")])
    return json.loads((folder / "figures.json").read_text())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="uoft-cs/cifar10", help="a local folder with CIFAR-10, or its Hub name")
    parser.add_argument("--limit", type=int, default=10_000, help="test images for the curves")
    parser.add_argument("--stage_limit", type=int, default=1000, help="test images for the stages")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/scale_resnet20_cifar10.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the pictures go")
    options = parser.parse_args(argv)
    data = ["--data", options.source]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        all_images = [*data, "--limit", str(options.limit)]
        stages = measure(folder, [PAPER], *data, "--limit", str(options.stage_limit), "--stages")
        curves = measure(folder, [PLAIN, PAPER], *all_images, "--gallery")
        averaging = measure(folder / "averaging", [PLAIN, AVERAGING], *all_images)
        curves["data"] = Path(options.source).name
        curves["averaging"] = {key: averaging[key] for key in ("images", "models", "comparisons")}
        curves["stages"] = {"images": stages["images"], **stages["models"][0]["stages"]}
        options.results.write_text(json.dumps({**record(), **curves}, indent=2, ensure_ascii=False) + "\n")
        for picture, kept in PICTURES.items():
            shutil.copy(folder / f"{picture}.png", options.docs / f"{kept}_resnet20_cifar10.png")


if __name__ == "__main__":
    main()
