"""What the tests of other packages share: the marker, the three forms, and the networks."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.networks import randomize

torch.set_num_threads(1)
FORMS = {"plain": "test_resnet", "concat": "wsms_test_resnet", "mean": "wsmean_test_resnet"}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def client(package: str, what: str, **unsupported: tuple[str, type[Exception]]) -> Callable[[Any], Any]:
    """Marks a test of a package (`make test-clients`), which runs once per form and is a line of docs/compatibility.md.

    Args:
        package: Its name on PyPI. Where it is not installed the test is skipped.
        what: What the test compares.
        **unsupported: Form → why it is known to fail, and with what. If it passes after all, the test fails.
    """
    cases: list[Any] = [
        pytest.param(
            form, marks=pytest.mark.xfail(reason=unsupported[form][0], raises=unsupported[form][1], strict=True)
        )
        if form in unsupported
        else form
        for form in FORMS
    ]

    def mark(test: Any) -> Any:
        return pytest.mark.clients(package, what)(pytest.mark.parametrize("form", cases)(test))

    return mark


def build(form: str, seed: int = 0, backbone: str = "test_resnet", **kwargs: Any) -> Any:
    """A small network in eval mode; weights, γ and running statistics have values that no default would hide."""
    torch.manual_seed(seed)
    name = FORMS[form].replace("test_resnet", backbone)
    return randomize(timm.create_model(name, num_classes=5, **kwargs), seed).eval()


def run(model: Any, x: torch.Tensor) -> torch.Tensor:
    """Its logits, which differ from image to image."""
    with torch.no_grad():
        logits = model(x)
    assert logits.std(0).mean() > 1e-3
    return logits


def step(model: Any, x: torch.Tensor, optimizer: Any = None) -> None:
    """One step of Adam, which moves every parameter, whatever the size of its gradient."""
    optimizer = optimizer or torch.optim.Adam([one for one in model.parameters() if one.requires_grad], 1e-2)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def stages_agree(model: Any, path: str, x: torch.Tensor) -> None:
    """That all stages compute with the weight of the backbone's layer at a path."""
    run(model, x)
    if not hasattr(model, "stages"):
        return
    expected = model.backbone.get_submodule(path).weight
    for stage in model.stages.values():
        torch.testing.assert_close(stage.backbone.get_submodule(path).weight, expected, rtol=0, atol=0)


def backbone_of(model: Any) -> Any:
    """The timm model in it, or itself."""
    return getattr(model, "backbone", model)
