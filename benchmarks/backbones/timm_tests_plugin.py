"""The pytest plugin of timm_tests.py: timm's tests get `wsms_<name>` wherever their lists give a chosen backbone."""

from __future__ import annotations

import argparse
import fnmatch
import gc
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from benchmarks.backbones.all_backbones import matches
from benchmarks.backbones.checks import one_line, time_limit
from benchmarks.common.random_networks import cheap_random_numbers

if TYPE_CHECKING:
    from benchmarks.backbones.timm_tests import Results

INTERRUPTED = "failed: the process ended in the middle"


class TwinName(str):
    """`wsms_<name>` for tests that tell models apart by how their names begin."""

    def startswith(self, prefix: Any, *bounds: Any) -> bool:
        return str.startswith(self, prefix, *bounds) or str.startswith(self[5:], prefix, *bounds)


class TwinMatch:
    """In place of the module `fnmatch` in timm's tests: a `wsms_` name is like the backbone's."""

    @staticmethod
    def fnmatch(name: str, pattern: str) -> bool:
        return fnmatch.fnmatch(name.removeprefix("wsms_"), pattern)


class Twins:
    """Gives timm's tests our names, runs a backbone after its `wsms_` form has failed, and notes the outcomes.

    Args:
        names: Backbones, in the order in which they are to be run.
        results: Where outcomes go, and what is known from earlier runs.
        arguments: `minutes`, `timeout`, `tests` and `retry`, as timm_tests.py takes them.
    """

    def __init__(self, names: list[str], results: Results, arguments: argparse.Namespace):
        self.position = {name: position for position, name in enumerate(names)}
        self.results = results
        self.arguments = arguments
        self.stop = time.monotonic() + 60 * arguments.minutes
        self.own_lists = timm.list_models, timm.list_pretrained

    def pytest_sessionstart(self) -> None:
        timm.list_models, timm.list_pretrained = self.list_models, lambda *_, **__: []

    def pytest_sessionfinish(self) -> None:
        timm.list_models, timm.list_pretrained = self.own_lists

    def list_models(self, *args: Any, pretrained: bool = False, **kwargs: Any) -> list[str]:
        """What timm's list says of the chosen backbones: each as `wsms_<name>`, and itself."""
        found = [] if pretrained else self.own_lists[0](*args, **kwargs)
        chosen = [name for name in found if name.partition(".")[0] in self.position and _has_default_tag(name)]
        return [twin for name in chosen for twin in (TwinName(f"wsms_{name}"), name)]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            raise pytest.UsageError(f"timm's test file cannot be read: {report.longreprtext}")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        names = {item: item.callspec.params.get("model_name", "") for item in items if hasattr(item, "callspec")}
        general = {item.originalname for item, name in names.items() if isinstance(name, TwinName)}
        chosen = [item for item in names if item.originalname in general and "torchscript" not in item.originalname]
        chosen = [item for item in chosen if matches(item.originalname, self.arguments.tests)]
        items[:] = sorted(chosen, key=lambda item: (self.position[_backbone(item)], item.originalname))  # a stable sort
        if items:
            module = items[0].module
            module.EARLY_POOL_MODELS = (*module.EARLY_POOL_MODELS, _wrapping(module.EARLY_POOL_MODELS))
            module.fnmatch = TwinMatch

    def pytest_runtest_protocol(self, item: Any) -> bool | None:
        """True: nothing is left to do for this item."""
        if time.monotonic() > self.stop:
            item.session.shouldstop = "the minutes are over"
            return True
        name, test, found = _arch(item), item.originalname, self.results.outcomes
        done = found.get(name, {}).get(test)
        wanted = name.startswith("wsms_") or found.get(f"wsms_{name}", {}).get(test, "").startswith("failed")
        if not wanted or (done and not (self.arguments.retry and done.startswith("failed"))):
            return True
        self.results.add(name, test, INTERRUPTED)
        return None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        torch.manual_seed(0)
        with time_limit(self.arguments.timeout), cheap_random_numbers():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Iterator[Any]:
        report = yield
        if call.when == "call" or not report.passed:
            reason = call.excinfo and one_line(call.excinfo.value)
            outcome = f"{report.outcome}: {reason}{_where(call.excinfo)}" if reason else report.outcome
            self.results.add(_arch(item), item.originalname, outcome)
            print(_arch(item), item.originalname, outcome, flush=True)
        if call.when == "teardown":
            gc.collect()
        return report


def _arch(item: Any) -> str:
    return str(item.callspec.params["model_name"]).partition(".")[0]


def _backbone(item: Any) -> str:
    return _arch(item).removeprefix("wsms_")


def _has_default_tag(name: str) -> bool:
    architecture, _, tag = name.partition(".")
    return not tag or tag == get_pretrained_cfg(architecture).tag


def _wrapping(classes: tuple[type, ...]) -> type:
    """A class of which every network is an instance whose backbone is an instance of one of `classes`."""

    class Wrapping(type):
        def __instancecheck__(cls, model: Any) -> bool:
            return isinstance(getattr(model, "backbone", None), classes)

    return Wrapping("Wrapping", (), {})


def _where(failure: Any) -> str:
    """The innermost line of this package's, or of the test, that the failure went through."""
    if isinstance(failure.value, pytest.skip.Exception):
        return ""
    ours = [
        entry for entry in failure.traceback if "timm_wsms" in entry.path.parts or entry.path.name == "test_models.py"
    ]
    return f" ({ours[-1].path.name}:{ours[-1].lineno + 1})" if ours else ""
