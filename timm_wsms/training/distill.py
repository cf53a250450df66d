"""Knowledge distillation: the teacher, and the loss that includes it. Both are timm's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.task import ClassificationTask, DistillationTeacher, LogitDistillationTask
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.evaluation.class_matching import label_names, match_classes
from timm_wsms.model_checks import check_input, check_train_sizes
from timm_wsms.registry.why_not import check_name
from timm_wsms.training.builders import build
from timm_wsms.training.loss import build_loss, with_stages
from timm_wsms.training.settings import Settings

Task = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]  # (images, labels) → {"loss": …}


class Teacher(DistillationTeacher):
    """timm's teacher, for images that are normalized as the data settings say, not as the student's pretraining did.

    Args:
        model: is put into eval mode, without gradients.
        data_config: the student's, with `mean` and `std`.
        class_names: the data's.

    Attributes:
        remark: what a user should know about the classes; None if there is nothing.

    Raises:
        UserError: the model's class names are not the data's.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, data_config: Mapping[str, Any], class_names: Sequence[str]):
        super().__init__(model.requires_grad_(False))
        self.model, self.remark = _in_order(model, class_names)
        self.eval()
        mean, std = (torch.tensor(data_config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def normalize_input(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Images (b, c, h, w) as normalized for the student → as normalized for the teacher."""
        return super().normalize_input(input, self.mean, self.std)


def _in_order(model: Any, class_names: Sequence[str]) -> tuple[nn.Module, str | None]:
    """Brings a teacher's logits into the order of the data's classes, if it names its classes.

    Raises:
        UserError: it names different ones.
    """
    names = label_names(model.pretrained_cfg.get("label_names"), model.num_classes) or class_names
    if sorted(names) != sorted(class_names) or len({*names}) < len(names):
        differ = sorted({*names} ^ {*class_names})[:4] or ["some of them twice"]
        raise UserError(
            f"the teacher was trained on other classes than the data's ({', '.join(differ)}); choose a distill.teacher "
            "that was trained on these classes, or rename the data's as the teacher's"
        )
    matched = match_classes(model, class_names, len(class_names))
    return matched.model, matched.remark


def build_teacher(settings: Settings, data_config: Mapping[str, Any], class_names: Sequence[str]) -> Teacher | None:
    """Builds the teacher, if the settings ask for one.

    Args:
        settings: `distill` is used.
        data_config: the student's, with `input_size`, `mean` and `std`.
        class_names: the data's.

    Raises:
        UserError: it cannot be built, does not know the same classes or cannot take images of the student's size.
    """
    name = settings.distill.teacher
    if name is None:
        return None
    check_name(name)
    kwargs = {"pretrained": True, **settings.distill.teacher_kwargs}
    # Keep the pretrained classifier: timm would replace it by a new one when the number of classes differs.
    classes = kwargs.pop("num_classes", None if kwargs["pretrained"] else len(class_names))
    model = build(name, kwargs, classes)
    check_input(model, f"teacher {name}", data_config["input_size"], len(class_names), kwargs="distill.teacher_kwargs")
    channels = data_config["input_size"][0]
    sides = settings.data.train_sizes
    check_train_sizes(model, f"teacher {name}", channels, sides, len(class_names), "distill.teacher_kwargs")
    teacher = Teacher(model, data_config, class_names)
    if teacher.mean_kd.shape != teacher.mean.shape:
        raise UserError(f"teacher {name} was trained on images with other channels; choose another")
    return teacher


def build_task(
    model: nn.Module, network: nn.Module, teacher: Teacher | None, settings: Settings, device: torch.device
) -> Task:
    """Returns a task that computes the loss: `task(images, labels)["loss"]`.

    Args:
        model: `network` in its wrappers.
        network: a timm model.
        teacher: from `build_teacher`; None for the labels alone.
        settings: the loss's, and `distill`.
        device: where all of them are.
    """
    loss: Any = build_loss(settings)
    chosen = settings.distill
    if settings.trains_stages:  # then the network returns every stage's output, see `adapt`
        loss = with_stages(loss, settings, network.factors())  # type: ignore[operator]
    if teacher is None:
        return ClassificationTask(model, loss, device=device, verbose=False)
    task = LogitDistillationTask(
        network,  # whose mean and std timm reads; a wrapper has none
        teacher,
        loss,
        task_loss_weight=1 - chosen.alpha,
        temperature=chosen.temperature,
        device=device,
        verbose=False,
    )
    task.trainable_module = model
    return task
