"""The small image first: `timm_wsms.Cascade(model)` runs the larger images only where the smaller ones leave doubt."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.files import atomic_write_text
from timm_wsms.foreign import understood
from timm_wsms.network.cascade_checks import check_model, check_stages, images_and_labels, one_per_exit
from timm_wsms.network.exits import Calibration, average_exits, choose_thresholds, confidences
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.pyramid import check_size
from timm_wsms.network.spending import Spending, StageLogits
from timm_wsms.network.tracing import is_traced, refuse

FILE = "cascade.json"
NOT_EXPORTED = "a cascade decides for each image, which a graph cannot; export each of cascade.stages (docs/cascade.md)"


class Cascade(nn.Module):
    """A network of averaged logits that stops as soon as it is sure. For inference only.

    ```
    image ─ × 0.5 ─► stage 2 ─► logits ─► sure? ─ yes ─► the answer
                                            └ no: × 1 ─► stage 1 ─► mean of both ─► the answer
    ```

    The smallest image of the pyramid goes first. Where the confidence, the largest probability after division of the
    logits by the exit's temperature, reaches the exit's threshold, the mean of the logits known so far is the answer;
    the other images of the batch, and only these, go on to the next larger size. At the last exit the mean is that of
    all stages. With a threshold above 1 the logits are those of `model(x)`, bit for bit; with 0 those of the stage of
    the smallest image. (Images that go on alone may have logits that differ by rounding from those in a full batch.)

    After BranchyNet (Teerapittayanon et al. 2016), MSDNet (Huang et al. 2018) and RANet (Yang et al. 2020), whose exits
    are parts of one network; here each exit is a stage. The stages must predict well on their own: train with a loss
    per stage, and `calibrate`.

    Args:
        model: A `wsmean_<name>`, or a `wsms_<name>` with `fusion="mean"`, in eval mode, not wrapped. It is not copied:
            a change of its weights changes the cascade.
        confidence: Threshold, 0 or larger; or one for every exit but the last, the smallest image's first.
        temperatures: Positive; or one for every exit but the last. `calibrate` finds both.

    Attributes:
        stages: The stages in the order in which they run. To compile them:
            `for stage in cascade.stages: stage.compile()`. Each is exported separately to ONNX or
            `torch.export`. Not registered as submodules, since the network under `model` has all parameters.
        last_exits: Number of stages run on each image of the last batch, int64 (B,).

    Raises:
        UserError: If the model is not such a network, is in training mode, has no classifier or only one stage, or if a
            threshold or a temperature is not valid.
    """

    def __init__(
        self,
        model: WsmsMeanNet,
        confidence: float | Sequence[float] = 0.9,
        temperatures: float | Sequence[float] = 1.0,
    ):
        super().__init__()
        check_model(model)
        super().train(False)
        self.model = model
        factors = model.factors()
        self.order = sorted(range(len(factors)), key=lambda place: factors[place])
        parts = [model.backbone, *model.stages.values()]
        self.stages = [StageLogits(parts[place], factors[place]).eval() for place in self.order]
        self.confidence = one_per_exit("confidence", confidence, len(factors) - 1, 0)
        self.temperatures = one_per_exit("temperatures", temperatures, len(factors) - 1, 1e-6)
        self.last_exits = torch.empty(0, dtype=torch.int64)
        self.spending = Spending(self.stages, self.order.index(0))

    def train(self, mode: bool = True) -> "Cascade":
        """As in PyTorch, except that there is no training mode.

        Raises:
            UserError: If `mode` is True.
        """
        if mode:
            raise UserError("a cascade cannot be trained; train its model, with a loss per stage")
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → mean logits of the stages that each image has taken (B, num_classes).

        Raises:
            UserError: If the network was put into training mode or got another backbone, if the image is too small, or
                if this is traced or exported.
        """
        if is_traced(x):
            refuse(NOT_EXPORTED)  # a graph would keep what is decided for these images
        check_model(self.model)
        check_stages(self.model, (stage.part for stage in self.stages))
        self.model.follow()
        check_size(x, min(stage.factor for stage in self.stages), len(self.stages))
        images, undecided = x, torch.arange(len(x), device=x.device)
        exits, counts = torch.full_like(undecided, len(self.stages)), []
        known: list[torch.Tensor] = []  # logits of the undecided images, in the order of `stages`
        answer = x.new_empty(0)
        for place, stage in enumerate(self.stages):
            known.append(stage(images))
            mean = torch.stack([known[taken] for taken in self._in_order(place)]).mean(0)
            if place == 0:
                answer = torch.empty_like(mean)
            answer[undecided] = mean
            if place + 1 == len(self.stages):
                counts.append(len(undecided))
                break
            sure = confidences(mean[None], [self.temperatures[place]])[0] >= self.confidence[place]
            exits[undecided[sure]] = place + 1
            rest = (~sure).nonzero()[:, 0]
            counts.append(len(undecided) - len(rest))
            if not len(rest):
                break
            if counts[-1]:
                images, undecided, known = images[rest], undecided[rest], [logits[rest] for logits in known]
        self.last_exits = exits
        self.spending.note((*x.shape[1:],), counts)
        return answer

    def _in_order(self, place: int) -> list[int]:
        """The first exits' stages, in the order in which `model` averages them."""
        return sorted(range(place + 1), key=lambda taken: self.order[taken])

    def costs(self, input_size: Sequence[int]) -> list[float]:
        """Arithmetic for an image that leaves at each exit, relative to the plain backbone's, which is stage 1.

        Multiplications of the stages taken over those of stage 1, both at this image size, counted as
        `timm_wsms.evaluate` counts them. The first call for a size runs each stage on one image.

        Args:
            input_size: (channels, height, width) in pixels, of the image as the cascade gets it.
        """
        return self.spending.costs(tuple(input_size))

    @property
    def last_cost(self) -> float:
        """Mean MACs of the last batch, relative to the plain backbone's; see `costs`.

        Raises:
            UserError: If there was no batch.
        """
        return self.spending.mean(last=True)

    def summary(self) -> str:
        """The work since the start, or since `reset`: how many images left at each exit, and the mean cost.

        Raises:
            UserError: If there were no images.
        """
        return self.spending.summary()

    def reset(self) -> None:
        """Forget the work done so far."""
        self.spending.reset()

    # ---- thresholds

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Any], max_drop: float = 1.0) -> Calibration:
        """Find temperatures and thresholds on held-out images, and use them.

        The thresholds, the same at every exit, are the smallest at which accuracy is shown to fall by at most
        `max_drop` points against all stages, with 95 % confidence, for images like these; how, see
        `timm_wsms.network.exits.choose_thresholds`. If none passes, every image goes through all stages.

        Args:
            batches: Images that were not trained on, (images (B, C, H, W), labels (B,)), or objects that have these as
                `.images` and `.labels`. One in four is used for the temperatures, the others for the thresholds.
            max_drop: In points of accuracy.

        Returns:
            The calibration; its `exits` and `drop` are those of the images that thresholds were tested on.

        Raises:
            UserError: If there are too few images (says how many are needed), a batch has no labels or an invalid
                one, or logits are not finite.
        """
        check_model(self.model)
        logits, labels = [], []
        like = next(self.model.parameters())
        for batch in batches:
            images, given = images_and_labels(batch)
            logits.append(self.model.stage_logits(images.to(like.device, like.dtype)).float().cpu())
            labels.append(given.cpu())
        if not labels:
            raise UserError("there are no batches to calibrate on; give an iterable with at least one")
        found = choose_thresholds(average_exits(torch.cat(logits, 1), self.order), torch.cat(labels), max_drop)
        self.confidence, self.temperatures = found.confidence, found.temperatures
        return found

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write thresholds and temperatures to `cascade.json` in a checkpoint folder, next to the model's weights.

        Raises:
            UserError: If there is no such folder.
        """
        if not Path(folder).is_dir():
            raise UserError(f"there is no folder {folder}; save the model there first")
        values = {
            "factors": [stage.factor for stage in self.stages],
            "confidence": self.confidence,
            "temperatures": self.temperatures,
        }
        atomic_write_text(Path(folder) / FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def from_folder(cls, folder: str | Path, model: WsmsMeanNet | None = None) -> "Cascade":
        """The cascade of a checkpoint folder, as it was saved.

        Args:
            folder: Has `cascade.json`, and the model's files.
            model: Its model, if it is already loaded.

        Raises:
            UserError: If there is no such file, or it is damaged, holds an invalid threshold or temperature, or was
                made for a different pyramid.
        """
        path = Path(folder) / FILE
        try:
            with understood(f"{path} is not a cascade's file: it", "calibrate and save again"):
                values = json.loads(path.read_text(encoding="utf-8"))
                factors, confidence, temperatures = (values[key] for key in ("factors", "confidence", "temperatures"))
        except FileNotFoundError as error:
            raise UserError(f"there is no {path}; calibrate a cascade and save it there first") from error
        network: Any = model or timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        cascade = cls(network)
        if factors != [stage.factor for stage in cascade.stages]:
            raise UserError(f"{path} is for a pyramid of {str(factors)[:60]}, not the model's; calibrate again")
        try:
            cascade.confidence = one_per_exit("confidence", confidence, len(factors) - 1, 0)
            cascade.temperatures = one_per_exit("temperatures", temperatures, len(factors) - 1, 1e-6)
        except UserError as error:
            raise UserError(f"{path}: {error}; calibrate and save again") from error
        return cascade
