"""Adds a trained model to the repository, as a Hub repo would hold it: hub/models/<name>/, with a card.

    python hub/add_model.py RUN/model --as NAME [--beside OTHER_RUN/model] [--data uoft-cs/cifar10]

The card shows the model's figures and, beside them, those of another run, such as the plain backbone's with the same
settings.
"""

import argparse
import shutil
import sys
from pathlib import Path

import yaml

from timm_wsms import cli_errors
from timm_wsms.errors import UserError
from timm_wsms.files import atomic_folder
from timm_wsms.hub import card, results
from timm_wsms.hub.verify_folder import check_folder

ROOT = Path(__file__).resolve().parents[1]
OWN = (
    "model",
    "model_kwargs",
    "baseline",
    "baseline_kwargs",
    "output",
    "resume",
    "seed",
    "stage_loss",
    "hub",
)  # settings that may differ


def add_model(folder: Path, target: Path, beside: Path | None = None, data: str | None = None) -> None:
    """Copies a checkpoint folder, with the figures of another run beside its own, and writes its card again.

    Args:
        folder: The `model` folder of a run.
        target: Takes the copy; what was there before goes.
        beside: The `model` folder of the run to compare with.
        data: The data set's name on the Hub, if the run read it from a local folder.

    Raises:
        UserError: The folder is not what it says.
    """
    check_folder(folder)
    own = results.read(folder)
    rows = own.rows
    if beside:
        check_alike(folder, beside)
        rows = [results.read(beside).rows[-1], own.rows[-1]]
    with atomic_folder(target) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        results.write(copy, rows, own.hardware, data or own.data)
        card.write(copy)


def check_alike(folder: Path, beside: Path) -> None:
    """Check that two runs can be compared: only the network, the loss of its stages and the seed may differ.

    Raises:
        UserError: Naming the settings that differ.
    """
    one, other = (yaml.safe_load((each / "settings.yaml").read_text(encoding="utf-8")) for each in (folder, beside))
    differ = [key for key in one.keys() | other.keys() if key not in OWN and one.get(key) != other.get(key)]
    if differ:
        raise UserError(f"{beside} was trained with another {' and '.join(sorted(differ))}; compare like with like")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the `model` folder of a run")
    parser.add_argument("--as", dest="name", required=True, help="name under hub/models")
    parser.add_argument("--beside", type=Path, help="the `model` folder of the run to compare with")
    parser.add_argument("--data", help="the data set's name on the Hub, if the run read it from a local folder")
    options = parser.parse_args()
    target = ROOT / "hub" / "models" / options.name
    add_model(options.folder, target, options.beside, options.data)
    print(target)


if __name__ == "__main__":
    sys.exit(cli_errors.run(main, cli_errors.Remedies()))
