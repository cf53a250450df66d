"""Keeps a trained model in the repository, as a Hub repo would hold it: hub/models/<name>/, with a card.

    python hub/keep.py RUN/model --as NAME [--beside OTHER_RUN/model] [--data uoft-cs/cifar10]

The card shows the model's figures and, beside them, those of another run: of the plain backbone, trained alike.
"""

import argparse
import shutil
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hub import card, results  # noqa: E402
from hub.check import check_folder  # noqa: E402
from timm_wsms.errors import UserError  # noqa: E402
from timm_wsms.training import faults  # noqa: E402
from timm_wsms.training.whole import written_beside  # noqa: E402

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


def keep(folder: Path, target: Path, beside: Path | None = None, data: str | None = None) -> None:
    """Copies a checkpoint folder, with the figures of another run beside its own, and writes its card anew.

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
    with written_beside(target) as copy:
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
        raise UserError(f"{beside} was trained with another {' and '.join(sorted(differ))}; compare runs trained alike")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the `model` folder of a run")
    parser.add_argument("--as", dest="name", required=True, help="name under hub/models")
    parser.add_argument("--beside", type=Path, help="the `model` folder of the run to compare with")
    parser.add_argument("--data", help="the data set's name on the Hub, if the run read it from a local folder")
    options = parser.parse_args()
    target = ROOT / "hub" / "models" / options.name
    keep(options.folder, target, options.beside, options.data)
    print(target)


if __name__ == "__main__":
    sys.exit(faults.run(main, faults.Remedies()))
