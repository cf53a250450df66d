"""The two networks side by side: what each predicts for a picture whose object is shown smaller or larger."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import timm
import timm.data
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.errors import UserError
from timm_wsms.evaluation.stages.cam import several_stages, stage_heat_maps
from timm_wsms.object_scaling import rescale_object

MODELS = Path(__file__).resolve().parents[2] / "models"  # in a clone of the repository
TopFive = list[tuple[str, float]]  # (label, probability), the likeliest first
Picture = tuple[torch.Tensor, torch.Tensor]  # as the WSMS network and its backbone take it, (3, H, W) each


@dataclass(frozen=True)
class Seen:
    """One picture at one size of its object.

    Attributes:
        images: What the WSMS network and its backbone are given, (3, H, W) each, in [0, 1].
        wsms: What the WSMS network takes it for.
        plain: What its backbone alone takes it for.
        maps: How much each place of each stage's map adds to the logit of the WSMS network's first guess, (S, h, w).
        factors: Size of each stage's image divided by the picture's, S of them.
    """

    images: tuple[torch.Tensor, torch.Tensor]
    wsms: TopFive
    plain: TopFive
    maps: torch.Tensor
    factors: list[float]


class Pair:
    """A WSMS network and its plain backbone, trained alike, in eval mode."""

    def __init__(self, wsms: str, plain: str) -> None:
        """Loads both.

        Args:
            wsms: As `timm.create_model` takes it: `local-dir:FOLDER` or `hf-hub:ORG/NAME`.
            plain: The same for the backbone alone. It must expect the same images, but at any size.

        Raises:
            UserError: One cannot be loaded, the first has no stages to look into or no labels, or the two were not
                trained for the same images and labels.
        """
        self.name = wsms
        self.wsms, self.plain = (_load(name) for name in (wsms, plain))
        several_stages(self.wsms)
        configs = [timm.data.resolve_model_data_config(model) for model in (self.wsms, self.plain)]
        self.labels, others = (model.pretrained_cfg.get("label_names") for model in (self.wsms, self.plain))
        if not self.labels:
            raise UserError(f"{wsms} does not say what its classes are: its config.json needs label_names")
        first, second = ({**config, "input_size": None} for config in configs)
        if first != second or self.labels != others:
            raise UserError(f"{wsms} and {plain} must be trained for the same images and labels")
        self.mean, self.std = (torch.tensor(first[key])[:, None, None] for key in ("mean", "std"))
        self.transforms = [timm.data.create_transform(**config) for config in configs]

    def prepare(self, image: Image.Image) -> Picture:
        """An RGB picture as each network takes it: its middle square at the network's size, normalized."""
        wsms, plain = (transform(image) for transform in self.transforms)
        return wsms, plain

    def see(self, picture: Picture, factor: float) -> Seen:
        """What both predict when the object is shown `factor` times as large.

        Args:
            picture: From `prepare`.
            factor: Size of the object divided by its size in the picture.
        """
        wsms, plain = (rescale_object(image[None], factor) for image in picture)  # (1, 3, H, W)
        maps = stage_heat_maps(self.wsms, wsms)[0]  # (S, h, w)
        shown = self._pixels(wsms), self._pixels(plain)
        factors = several_stages(self.wsms).factors()
        return Seen(shown, self._top5(self.wsms, wsms), self._top5(self.plain, plain), maps, factors)

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Normalized images (1, 3, H, W) → the first one's colors, (3, H, W) in [0, 1]."""
        return (images[0] * self.std + self.mean).clamp(0, 1)

    @torch.inference_mode()
    def _top5(self, model: torch.nn.Module, images: torch.Tensor) -> TopFive:
        values, places = model(images)[0].softmax(0).topk(min(5, len(self.labels)))
        return [(self.labels[place], value) for value, place in zip(values.tolist(), places.tolist(), strict=True)]

    def scale_plot(self) -> bytes | None:
        """The plot of accuracy against object size that came with the WSMS network, a PNG file's content, or None."""
        place, _, name = self.name.partition(":")
        if place == "local-dir":
            path = Path(name) / "scale.png"
            return path.read_bytes() if path.is_file() else None
        repo, _, revision = name.partition("@")
        try:
            return Path(hf_hub_download(repo, "scale.png", revision=revision or None)).read_bytes()
        except EntryNotFoundError:
            return None


def load_pair() -> Pair:
    """The pair that the environment names (WSMS_MODEL, PLAIN_MODEL), else the one that comes with the repository.

    Raises:
        UserError: As for `Pair`.
    """
    return Pair(
        os.environ.get("WSMS_MODEL", f"local-dir:{MODELS / 'wsmean_tf_efficientnet_lite0_flowers'}"),
        os.environ.get("PLAIN_MODEL", f"local-dir:{MODELS / 'tf_efficientnet_lite0_flowers'}"),
    )


def _load(name: str) -> torch.nn.Module:
    try:
        return timm.create_model(name, pretrained=True).eval()
    except (OSError, RuntimeError) as error:  # no folder, no repository, no network; not the weights of that network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "set WSMS_MODEL and PLAIN_MODEL to hf-hub:ORG/NAME or local-dir:FOLDER"
        raise UserError(f"{name} cannot be loaded ({reason}); {remedy}") from error
