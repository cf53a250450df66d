"""A trained model's classes in the order of the data's, matched by name wherever both have names."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.foreign import printable
from timm_wsms.utils import composed


class InOrder(nn.Module):
    """A model whose logits come in another order."""

    def __init__(self, model: nn.Module, order: Sequence[int]):
        super().__init__()
        self.model = model
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)[:, self.order]  # (b, classes)


class Matched(NamedTuple):
    """A model whose first logits are the data's classes, in the data's order.

    Attributes:
        model: the model, wrapped if the order is another.
        class_names: one per logit: the data's classes, then those of the model that the data does not have.
        remark: what a user should know; None if there is nothing.
        by_name: whether the data's classes were found among the model's by name; otherwise they are assumed to match
            by number.
    """

    model: nn.Module
    class_names: list[str]
    remark: str | None = None
    by_name: bool = True


def match_classes(model: Any, class_names: Sequence[str], num_classes: int) -> Matched:
    """Brings a model's classes into the order of the data's.

    The data may have some of the model's classes only. They are matched by the `label_names` of the model's
    config.json; for models of ImageNet, by WordNet id or by ImageNet's names ("tench", "Tinca tinca"). All logits still
    compete: an image taken for a class that the data does not have is a mistake.

    Args:
        model: a timm model.
        class_names: the data's.
        num_classes: the model's.

    Raises:
        UserError: the model and the data have different numbers of classes and cannot be matched by name; names match
            only some of them, at other places; or its names are not words.
    """
    data = [composed(name) for name in class_names]
    names = label_names(model.pretrained_cfg.get("label_names"), num_classes)
    if names == data:
        return Matched(model, data)
    own = names or _imagenet_names(num_classes)
    order = _places(data, names, num_classes)
    if order is not None and own is not None and len(own) == num_classes:
        return _reordered(model, data, order, own)
    if len(data) != num_classes:
        raise UserError(_no_match(data, names, num_classes))
    if names is None:
        remark = "its checkpoint does not name its classes; they are taken to be in the data's order"
        return Matched(model, data, remark, by_name=False)
    if any(name in names and names[place : place + 1] != [name] for place, name in enumerate(data)):
        raise UserError(_no_match(data, names, num_classes))
    if len(names) != len(data):
        remark = f"it names {len(names)} classes, the data {len(data)}; they are matched by number"
        return Matched(model, data, remark, by_name=False)
    one = next(pair for pair in zip(names, data, strict=True) if pair[0] != pair[1])
    example = " is ".join(printable(json.dumps(name, ensure_ascii=False)) for name in one)
    remark = f"its class names are not the data's; they are matched by number ({example})"
    return Matched(model, data, remark, by_name=False)


def label_names(found: Any, num_classes: int) -> list[str] | None:
    """The names in a model's config, in the order of its logits; None if there are none.

    Args:
        found: as in timm, a list, or a dictionary from number to name, which may have gaps.
        num_classes: the model's.

    Raises:
        UserError: they are not words, or their numbers are not the model's.
    """
    if not found:
        return None
    names = _in_order(found, num_classes) if isinstance(found, dict) else found
    if not isinstance(names, (list, tuple)) or not all(type(name) in (str, int) for name in names):
        raise UserError("has class names that are not words; fix label_names in its config.json")
    return [composed(str(name)) for name in names]


def _in_order(found: dict[Any, Any], num_classes: int) -> list[Any]:
    """A dictionary's names by number, which JSON turns into words."""
    if not all(re.fullmatch(r"\d+", str(number)) and int(number) < num_classes for number in found):
        raise UserError(
            f"label_names in its config.json must map numbers from 0 to {num_classes - 1} to names; fix them"
        )
    names = [f"class {number}, without a name" for number in range(num_classes)]
    for number, name in found.items():
        names[int(number)] = name
    return names


def _reordered(model: Any, data: list[str], order: list[int], own: list[str]) -> Matched:
    known = set(order)
    rest = [number for number in range(len(own)) if number not in known]
    whole = [*order, *rest]
    names = [*data, *(own[number] for number in rest)]
    in_order = whole == list(range(len(own)))
    remark = None if in_order else "its classes are the data's in another order; they are matched by name"
    if rest:
        remark = f"the data has {len(data)} of its {len(own)} classes; they are matched by name, and all compete"
    return Matched(model if in_order else InOrder(model, whole), names, remark)


def _places(data: list[str], names: list[str] | None, num_classes: int) -> list[int] | None:
    """Each of the data's classes among the model's, by name; None unless all are found, each a different one."""
    if names is not None:
        places = {name: number for number, name in enumerate(names)} if len(set(names)) == len(names) else {}
        found = [places.get(name) for name in data]
    else:
        aliases = _imagenet_aliases(num_classes)
        found = [aliases.get(_plain(name)) for name in data]
    whole = [number for number in found if number is not None]
    return whole if len(whole) == len(data) == len(set(whole)) else None


def _imagenet_names(num_classes: int) -> list[str] | None:
    """The first name of each of ImageNet's classes, if there are as many as one of its subsets has."""
    info = _imagenet(num_classes)
    return None if info is None else [name.split(",")[0] for name in info.label_descriptions()]


def _imagenet_aliases(num_classes: int) -> dict[str, int]:
    """Class by WordNet id and by each of its names; without names that two classes have, such as "crane"."""
    info = _imagenet(num_classes)
    if info is None:
        return {}
    found: dict[str, int | None] = {}
    for number, (identity, description) in enumerate(zip(info.label_names(), info.label_descriptions(), strict=True)):
        for name in {_plain(name) for name in (identity, description, *description.split(","))}:
            found[name] = None if name in found else number
    return {name: number for name, number in found.items() if number is not None}


def _imagenet(num_classes: int) -> ImageNetInfo | None:
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else ImageNetInfo(subset)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", composed(name)).strip().casefold()


def _no_match(data: list[str], names: list[str] | None, num_classes: int) -> str:
    """Why the data's classes cannot be matched to the model's."""
    known = set(names) if names is not None else _imagenet_aliases(num_classes).keys()
    unknown = [name for name in data if (name if names is not None else _plain(name)) not in known]
    if not known or len(unknown) == len(data):
        return f"has {num_classes} classes, but the data has {len(data)}"
    several = ", ".join(unknown[:5]) or "several names for one class"
    return f"has {num_classes} classes, and does not know these of the data's {len(data)}: {several}"
