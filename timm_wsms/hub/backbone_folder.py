"""One stage of a network as the checkpoint folder of a plain timm model, which loads without timm_wsms."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config

from timm_wsms import evaluation
from timm_wsms.data import summary
from timm_wsms.errors import UserError
from timm_wsms.evaluation import Row
from timm_wsms.foreign import read_last_line, understood
from timm_wsms.hub import card, results
from timm_wsms.hub.verify_folder import load
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.plain import check_plain, to_backbone
from timm_wsms.training.checkpoint_folder import RUN, reference_images, run_hash, save_model_folder

OF_THE_RUN = (*RUN, summary.FILE, "curves.png")  # files that tell how the network was trained


def in_timm(architecture: str) -> bool:
    """Whether timm without plugins has an architecture."""
    return timm.is_model(architecture) and timm.models.model_entrypoint(architecture).__module__.startswith("timm.")


def write(folder: Path, target: Path, stage: int = 1, figures: dict[str, Any] | None = None) -> None:
    """Writes one stage of a network as a checkpoint folder that `timm.create_model("local-dir:…")` loads.

    Args:
        folder: The network's checkpoint folder, as a run leaves it.
        target: An empty folder.
        stage: Number of the stage, counted from 1.
        figures: What the stage alone achieves on the test images (`test_top1`, `test_top5`, `by_size`,
            `by_factor`); None: for stage 1 what the run measured, if anything, and for others unknown.

    Raises:
        UserError: The folder holds no network with such a stage, or plain timm doesn't have its backbone.
    """
    network = load(folder)
    check(network, stage)
    plain = to_backbone(network, stage)
    for name in OF_THE_RUN:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    example = reference_images(network.pretrained_cfg["input_size"])
    if isinstance(network, WsmsMeanNet):
        example = network.stage_images(example)[stage - 1]
    config, names = resolve_model_data_config(plain), plain.pretrained_cfg.get("label_names", [])
    save_model_folder(plain, target, config, names, example, run=run_hash(target))
    found = results.read(folder)
    taken = results.Taken(network.pretrained_cfg["architecture"], stage, network.factors()[stage - 1])
    if figures is None:  # the run measured on the same images as for the network's row, or not at all
        figures = {} if found.evaluated else measured(folder, stage)
    rows = [*found.rows, row(plain, found.rows[-1].model, stage, figures, plain.pretrained_cfg["input_size"])]
    results.write(target, rows, found.hardware, found.data, taken, found.evaluated)
    evaluation.plot_rows(rows, target / "scale.png")
    card.write(target)


def check(network: Any, stage: int = 1) -> None:
    """Check that a stage of a network can be a plain timm checkpoint.

    Raises:
        UserError: Plain timm doesn't have its backbone, or the stage is not a whole backbone; see `to_backbone`.
    """
    if not isinstance(network, MultiStageNet):
        raise UserError("it is a plain timm model already, which has no stages to extract; leave out --as-backbone")
    check_plain(network, stage)
    architecture = network.backbone.pretrained_cfg["architecture"]
    if not in_timm(architecture):
        raise UserError(
            f"plain timm has no {architecture}, so a checkpoint of it would need timm_wsms all the same; publish the "
            "network itself"
        )


def measured(folder: Path, stage: int) -> dict[str, Any]:
    """What the run measured for a stage alone; empty if nothing."""
    last = read_last_line(folder / "metrics.jsonl")
    with understood(folder / "metrics.jsonl"):
        return dict(last.get("backbone", {})) if stage == 1 else {}


def row(plain: Any, network: str, stage: int, figures: dict[str, Any], input_size: Sequence[int]) -> Row:
    """The row of a stage alone in the table of results.

    Args:
        plain: The stage as a timm model.
        network: The network's name in the table.
        stage: Its number.
        figures: `test_top1`, `test_top5`, `by_size` and `by_factor`; without them the accuracy is unknown.
        input_size: (C, H, W) of its images.
    """
    return Row(
        f"stage {stage} of {network}",
        evaluation.parameters(plain),
        evaluation.multiplications(plain, input_size),
        figures.get("test_top1"),
        {int(size): accuracy for size, accuracy in figures.get("by_size", {}).items()},
        figures.get("test_top5"),
        input_size,
        {float(factor): accuracy for factor, accuracy in figures.get("by_factor", {}).items()},
    )
