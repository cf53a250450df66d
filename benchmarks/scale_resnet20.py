"""Accuracy against object size of the two CIFAR-10 networks that come with the repository.

    python benchmarks/scale_resnet20.py --source ../shared/data/cifar10

Both were trained at size 1 only. Runs `timm_wsms.scale` with all it has: figures go to benchmarks/results/, pictures to
docs/.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from machine import ROOT, record

from timm_wsms import scale

MODELS = ("resnet20_cifar10", "wsms_resnet20_cifar10")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="uoft-cs/cifar10", help="a local folder with CIFAR-10, or its Hub name")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/scale_resnet20_cifar10.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the pictures go")
    options, more = parser.parse_known_args(argv)  # the rest is for the command
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        words = [*(str(ROOT / "hub/models" / name) for name in MODELS), "--data", options.source]
        scale.main([*words, "--stages", "--gallery", "--output", folder, "--json", str(figures), *more])
        found = json.loads(figures.read_text())
        found["data"] = Path(found["data"]).name
        options.results.write_text(json.dumps({**record(), **found}, indent=2, ensure_ascii=False) + "\n")
        pictures = {
            "scale": "scale",
            "stages": "scale_stages",
            "gallery": "scale_gallery",
            f"heat_{MODELS[1]}": "scale_heat",
        }
        for name, kept in pictures.items():
            shutil.copy(Path(folder) / f"{name}.png", options.docs / f"{kept}_resnet20_cifar10.png")


if __name__ == "__main__":
    main()
