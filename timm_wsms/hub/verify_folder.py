"""Whether a checkpoint folder is consistent: its files, config, weights and outputs agree with each other."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from timm_wsms.cli_errors import is_out_of_memory
from timm_wsms.data import DataSettings, data_config, summary
from timm_wsms.data.folder_walk import walk
from timm_wsms.errors import UserError
from timm_wsms.evaluation import Row
from timm_wsms.evaluation.class_matching import label_names
from timm_wsms.foreign import read_json, read_last_line, understood
from timm_wsms.hub import results
from timm_wsms.hub.config_check import check_model_args, check_pretrained_cfg
from timm_wsms.registry.arguments import NETWORK_ARGS, prefix_of
from timm_wsms.registry.size_check import check_size
from timm_wsms.training.checkpoint_folder import RUN, reference_tensors, run_hash
from timm_wsms.utils import composed

WEIGHTS, TENSORS = "model.safetensors", "test/tensors.safetensors"
NEEDED = ("config.json", WEIGHTS, TENSORS, *RUN, results.FILE)
FILES = (*NEEDED, "data.json", "README.md", "curves.png", "scale.png", "cascade.json")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".joblib")
# Part of the largest output: how far other kernels, versions and thread counts change it with the same weights.
TOLERANCE = 1e-3


def check_folder(folder: Path) -> Any:
    """Check all that can be checked without the Hub and without data.

    Returns:
        The model, in eval mode.

    Raises:
        UserError: Naming the first thing that is wrong.
    """
    check_files(folder)
    check_config(folder)
    check_run(folder)
    model = load(folder)
    try:
        data_config(model, DataSettings())
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    check_outputs(model, folder)
    return model


def check_files(folder: Path) -> None:
    """Check that the folder holds what a published model has, and nothing else."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the `model` folder of a run")
    if (folder / "model").is_dir() and not (folder / "config.json").exists():
        raise UserError(f"{folder} is the folder of a run; give {folder / 'model'}")
    found = {path.relative_to(folder).as_posix() for path, _ in walk(folder)}
    inside = (folder.resolve(), folder.resolve().parent.parent / "blobs")  # where the Hub's cache has its files
    for name in sorted(found):
        if not any((folder / name).resolve().is_relative_to(place) for place in inside):
            raise UserError(f"{folder / name} is a link out of the folder; put the file itself there")
    for name in sorted(found - set(FILES)):
        what = "is pickled, and pickles are not published" if name.endswith(PICKLED) else "is not part of a model"
        raise UserError(f"{folder / name} {what}; move it out of the folder")
    if missing := [name for name in NEEDED if name not in found]:
        raise UserError(f"{folder} has no {missing[0]}; give the `model` folder of a run, or train it again")


def check_config(folder: Path) -> None:
    """Check config.json as one from a stranger, whether the network is a WSMS one or a plain backbone.

    Raises:
        UserError: Naming the field.
    """
    config = read_json(folder / "config.json")
    with understood(f"{folder / 'config.json'} is not a timm config: it"):
        architecture, described = config["architecture"], dict(config["pretrained_cfg"])
        arguments, labels = dict(config.get("model_args", {})), config.get("label_names")
        count = None if labels is None else len(labels)
    if not isinstance(architecture, str) or not timm.is_model(architecture) or "." in architecture:
        raise UserError(f"the config names an architecture {str(architecture)[:60]!r}, which timm does not know")
    check_model_args(arguments, NETWORK_ARGS if prefix_of(architecture) else ())
    check_pretrained_cfg({**described, "source": "local-dir", "num_classes": config.get("num_classes")}, arguments)
    if count is not None and count != config.get("num_classes"):
        raise UserError(f"the config names {count} labels for {str(config.get('num_classes'))[:60]} classes")
    names = label_names(labels, config.get("num_classes", 0))
    data = folder / summary.FILE
    if data.is_file():
        with understood(data):
            classes = [composed(str(name)) for name in read_json(data)["classes"]]
        if names != classes:
            raise UserError(
                f"{folder / 'config.json'} has other label_names than the classes in {data.name}; restore it"
            )


def check_run(folder: Path) -> None:
    """Check that the weights' file names the run whose settings and metrics are in the same folder."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is not a complete safetensors file ({error}); copy it again") from error
    if metadata.get("format") != "pt" or "run" not in metadata:
        raise UserError(f"{folder / WEIGHTS} does not say which run it is from; train it again with this version")
    if metadata["run"] != run_hash(folder):
        raise UserError(f"{folder / WEIGHTS} is from another run than {' and '.join(RUN)} beside it")
    check_results(folder)


def check_results(folder: Path) -> None:
    """Check that the results agree with the run's metrics, unless they are from another evaluation."""
    found = results.read(folder)
    if found.evaluated:
        return
    last = read_last_line(folder / "metrics.jsonl")
    with understood(folder / "metrics.jsonl"):
        alone = last.get("backbone", {}) if found.taken and found.taken.stage == 1 else {}
        # what the run didn't measure may have been measured later
        of_run = [alone if found.taken else {"test_top1": None, **last}, *([last] if found.taken else [])]
        differ = [one for row, told in zip(found.rows[::-1], of_run, strict=False) for one in _differences(row, told)]
    if differ:
        name, own, told = differ[0]
        raise UserError(f"{folder / results.FILE} says {name} {own}, metrics.jsonl {told}")


def _differences(row: Row, told: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where a row of the results differs from the run's metrics: name, the row's value, the metrics'."""
    figures: dict[str, Any] = {"test_top1": row.accuracy}
    figures |= {"test_top5": row.top5} if row.top5 is not None else {}  # older runs have no such column
    for name, sizes in (("by_size", row.by_size), ("by_factor", row.by_factor)):
        figures |= {name: {str(size): value for size, value in sizes.items()}} if sizes else {}
    return [(name, own, told[name]) for name, own in figures.items() if name in told and told[name] != own]


def load(folder: Path) -> Any:
    """The model of a folder, loaded strictly through timm, in eval mode.

    Raises:
        UserError: Config and weights do not agree.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  no dict
        check_size(lambda: timm.create_model(f"local-dir:{folder}"), stored, str(folder / WEIGHTS))
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # timm's networks may raise anything on values they do not expect
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        why = textwrap.shorten(str(error), 160, placeholder=" …")
        raise UserError(f"{folder}: config.json and {WEIGHTS} do not agree ({why})") from error


def check_outputs(model: Any, folder: Path) -> None:
    """Check that the model computes the same from the recorded input as when it was trained."""
    with understood(folder / TENSORS):
        recorded = load_file(folder / TENSORS)
        computed = reference_tensors(model, recorded["input"])
    for name in ("features", "pre_logits", "logits"):
        if name not in recorded and name != "logits":
            continue  # features that are not a single tensor
        found, expected = computed[name], recorded.get(name, computed[name].new_empty(0))
        same_shape = expected.shape == found.shape and expected.is_floating_point()
        bound = TOLERANCE * max(1.0, expected.abs().max().item()) if same_shape else 0.0
        if not same_shape or not ((found - expected).abs() <= bound).all():  # false for NaN
            raise UserError(f"{folder}: the model's {name} are not those recorded in {TENSORS}; train or copy it again")
