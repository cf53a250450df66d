"""Verifies a published model: downloads it again, compares checksums, rebuilds it, compares outputs, measures accuracy.

    python -m timm_wsms.hub.verify owner/name[@revision] [--data SOURCE]
    python -m timm_wsms.hub.verify FOLDER [--data SOURCE]           a checkpoint folder, without the Hub

SOURCE is what `--data.source` of the training script takes: a data set on the Hub, a local folder, or `digits`. The
accuracy on its test split has to be that of the model's results.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi, hf_hub_download

from timm_wsms import cli_errors, evaluation
from timm_wsms.data import DataSettings, data_config, load_split, make_loader
from timm_wsms.errors import UserError
from timm_wsms.evaluation.class_matching import match_classes
from timm_wsms.foreign import read_yaml, understood
from timm_wsms.hub import results
from timm_wsms.hub.client import look, retried
from timm_wsms.hub.download import file_sum
from timm_wsms.hub.errors import in_one_line
from timm_wsms.hub.verify_folder import FILES, NEEDED, check_folder, check_outputs

# What is used of a stranger's settings: which images, and how to prepare them; not how many processes or images.
FROM_SETTINGS = (
    *("config", "train_split", "test_split", "holdout", "image_column", "label_column", "value_range"),
    *("mean", "std", "crop_pct"),  # the size is the model's own: that of a stage isn't its network's
)
TOLERANCE = 0.05  # percent: images so close to a decision boundary that rounding decides


def verify(place: str, data: str | None = None) -> list[str]:
    """Verifies what others get.

    Args:
        place: `owner/name` or `owner/name@revision` on the Hub, or a checkpoint folder.
        data: Source of images to measure the accuracy on; None: do not measure it.

    Returns:
        A line for each thing that is right.

    Raises:
        UserError: Something is not right; says what.
    """
    if Path(place).is_dir():
        return verify_folder(Path(place), place, data)
    repo, _, revision = place.partition("@")
    with tempfile.TemporaryDirectory() as cache, in_one_line(place):
        folder, commit = download(repo, revision or None, cache)
        said = verify_folder(folder, place, data)
        model = timm.create_model(f"hf-hub:{repo}@{commit}", pretrained=True, cache_dir=cache).eval()
        check_outputs(model, folder)
    return [f"{repo} at {commit}: its files have the sums that the Hub gives", *said]


def verify_folder(folder: Path, place: str, data: str | None) -> list[str]:
    """The same for a checkpoint folder."""
    model = check_folder(folder)
    said = ["config, weights and run agree; the outputs are those recorded when it was trained"]
    if data:
        expected = results.read(folder).rows[-1].accuracy
        found = figures(model, folder, data)["test_top1"]
        if expected is None:
            return [*said, f"top-1 on {data} is {found:.2f} %, and it does not say what it should be"]
        if abs(found - expected) > TOLERANCE:
            raise UserError(
                f"top-1 on {data} is {found:.2f} %, but {place} says {expected:.2f} %; is it that data set?"
            )
        said.append(f"top-1 on {data} is {found:.2f} %, and it says {expected:.2f} %")
    return said


def download(repo: str, revision: str | None, cache: str) -> tuple[Path, str]:
    """Downloads a repo's files into an empty cache and compares their checksums with the Hub's list.

    Returns:
        The folder, and the commit.

    Raises:
        UserError: A file is missing or damaged.
    """
    there = look(HfApi(), repo, revision)
    if missing := [name for name in NEEDED if name not in there.sums]:
        raise UserError(f"{repo} has no {missing[0]}, so it is not a model of ours; pickled weights are not read")
    config = Path()
    for name in (name for name in FILES if name in there.sums):
        path = Path(
            retried(lambda name=name: hf_hub_download(repo, name, revision=there.commit, cache_dir=cache))  # type: ignore
        )
        if file_sum(path, "sha256" if len(there.sums[name]) == 64 else "git") != there.sums[name]:
            raise UserError(f"{name} of {repo} is corrupted: its sum is not the Hub's; run it again")
        config = path if name == "config.json" else config
    return config.parent, there.commit


def figures(model: Any, folder: Path, source: str) -> dict[str, Any]:
    """Accuracy in percent on the split that a folder's figures are of, read from another source of the same images.

    Args:
        model: Any timm model; the images are prepared by timm's transform, for the size that it states.
        folder: Has the run's settings.
        source: Source of the images.

    Returns:
        `test_top1`, `test_top5`, and `by_size`: object size in pixels → top-1, empty where sizes are not known.

    Raises:
        UserError: The source has other classes than the model.
    """
    from accelerate import Accelerator

    settings = read_yaml(folder / "settings.yaml")
    with understood(folder / "settings.yaml"):
        chosen = {key: settings["data"].get(key) for key in FROM_SETTINGS if settings["data"].get(key) is not None}
        if evaluated := results.read(folder).evaluated:
            chosen.pop("holdout", None)
            chosen["test_split"] = evaluated.split
        data, seed = DataSettings(source=source, **chosen), int(settings["seed"])
    split = load_split(data, seed=seed)
    accelerator = Accelerator(mixed_precision="no")
    loader = make_loader(split, data, data_config(model, data), train=False, batch_size=256, rank=0, world_size=1)
    matched = match_classes(model, split.class_names, model.num_classes)
    unlike = bool(model.pretrained_cfg.get("label_names")) and not matched.by_name
    if unlike or len(matched.class_names) != len(split.class_names):
        raise UserError(f"{source} has other classes than the model; give a source of the images that it was tested on")
    ordered = matched.model.to(accelerator.device)
    found = evaluation.predict(ordered, loader, accelerator, len(split), progress=True)
    by_size = {} if split.object_sizes is None else evaluation.accuracy_by_size(found, split.object_sizes)
    return {"test_top1": evaluation.top1(found), "test_top5": evaluation.top5(found), "by_size": by_size}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", metavar="owner/name[@revision]", help="what to verify; or a checkpoint folder")
    parser.add_argument("--data", help="measure the accuracy on the test split of this source")
    options = parser.parse_args(argv)
    print("\n".join(verify(options.place, options.data)))


if __name__ == "__main__":
    sys.exit(cli_errors.run(main, cli_errors.Remedies()))
