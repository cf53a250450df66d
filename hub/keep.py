"""Keeps a trained model in the repository, as a Hub repo would hold it: hub/models/<name>/, with a card.

    python hub/keep.py RUN/model --as NAME [--beside OTHER_RUN/model] [--data uoft-cs/cifar10]

The card shows the model's figures and, beside them, those of another run: of the plain backbone, trained alike.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import timm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hub import card  # noqa: E402
from timm_wsms.errors import UserError  # noqa: E402
from timm_wsms.evaluation import Row, markdown_table, multiplications, parameters  # noqa: E402
from timm_wsms.training import faults  # noqa: E402


def row(folder: Path) -> tuple[Row, dict]:
    """The table row of a checkpoint folder, and the figures of its last epoch."""
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} is no checkpoint folder: give the `model` folder of a run")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    figures = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    cost = parameters(model), multiplications(model, model.pretrained_cfg["input_size"])
    return Row(model.pretrained_cfg["architecture"], *cost, figures["test_top1"], {}), figures


def keep(folder: Path, name: str, beside: Path | None, data: str | None) -> Path:
    """Copies a checkpoint folder to hub/models/<name> and writes its card anew; returns where it stands."""
    own, figures = row(folder)
    rows = [row(beside)[0], own] if beside else [own]
    target = ROOT / "hub" / "models" / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    card.fill(
        ROOT / "MODEL_CARD.md",
        target,
        parameters=own.parameters,
        multiplications=own.multiplications,
        top1=figures["test_top1"],
        top5=figures["test_top5"],
        table=markdown_table(rows),
        baseline=rows[0].model if beside else None,
        repo_id=None,
        sizes_known=False,
        **({"data_id": data, "data_name": data} if data else {}),
    )
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the `model` folder of a run")
    parser.add_argument("--as", dest="name", required=True, help="name under hub/models")
    parser.add_argument("--beside", type=Path, help="the `model` folder of the run to compare with")
    parser.add_argument("--data", help="the data set's name on the Hub, if the run read it from a local folder")
    options = parser.parse_args()
    print(keep(options.folder, options.name, options.beside, options.data))


if __name__ == "__main__":
    sys.exit(faults.run(main))
