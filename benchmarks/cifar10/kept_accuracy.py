"""Accuracy of the models in hub/models/ on CIFAR-10's test images, measured anew, beside what their cards say.

    python -m benchmarks.cifar10.kept_accuracy --source ../shared/data/cifar10

A card's figure is from the run that trained the model; here its folder is read as a user reads it (hub/verify.py).
"""

import argparse
import json
from pathlib import Path

from benchmarks.common.environment import ROOT, record
from timm_wsms.hub import results
from timm_wsms.hub.verify import accuracy
from timm_wsms.hub.verify_folder import check_folder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="uoft-cs/cifar10", help="a local folder with CIFAR-10, or its Hub name")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "hub_models.json")
    options = parser.parse_args(argv)
    rows = []
    for folder in sorted(path for path in (ROOT / "hub" / "models").iterdir() if path.is_dir()):
        measured = round(accuracy(check_folder(folder), folder, options.source), 2)
        card = round(results.read(folder).rows[-1].accuracy, 2)
        rows.append({"model": folder.name, "measured": measured, "card": card})
        print(rows[-1], flush=True)
    what = "top-1 in % on CIFAR-10's 10,000 test images, float32, beside what the models' cards say"
    options.out.write_text(json.dumps({"what": what, **record(), "results": rows}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
