"""Saves one picture of each class of a data set, for the demo to offer: `<class>/<label>.png`.

    python hub/space/make_examples.py flowers --output outputs/demo

Needs the package's `train` extra. It takes the first image of each class of the evaluation split, whatever the networks
predict for it. Check that you may show the pictures before you publish them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from timm_wsms import cli_errors
from timm_wsms.data import load_split
from timm_wsms.data.decode import BadImageError
from timm_wsms.errors import UserError
from timm_wsms.evaluation.options import Options
from timm_wsms.files import atomic_folder


def save_examples(options: Options, folder: Path) -> list[Path]:
    """Saves the first image of each class.

    Args:
        options: The data set, its configuration and its split are used.
        folder: Where the pictures go; it must be empty.

    Returns:
        One path per class that the split has images of.

    Raises:
        UserError: The data set cannot be read, or the folder is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder with --output")
    split = load_split(options.data_settings())
    classes, places = np.unique(split.labels, return_index=True)
    names = [Path(split.class_names[label].replace("/", "-"), f"{label}.png") for label in classes]
    with atomic_folder(folder) as new:
        for name, place in zip(names, places, strict=True):
            try:
                (new / name).parent.mkdir(exist_ok=True)
                split.image(place).save(new / name)
            except BadImageError as error:
                raise UserError(f"{error} Fix it, or remove it from the data set.") from error
    return [folder / name for name in names]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a local folder or a Hub name")
    parser.add_argument("--config", help="the Hub data set's configuration, where it has several")
    parser.add_argument("--split", help="by default `test`, else a validation split")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder for the pictures")
    args = parser.parse_args()
    paths = save_examples(Options(data=args.data, config=args.config, split=args.split), args.output)
    print(f"{len(paths)} pictures in {args.output}")


if __name__ == "__main__":
    sys.exit(cli_errors.run(main, cli_errors.Remedies(place="choose another --output")))
