"""The readers of files from others, each as a function that takes a file's bytes, and valid files to start from."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks.common.environment import ROOT
from benchmarks.reliability.fuzz_data import DATA_READERS, Reader
from timm_wsms.data import DataSettings, load_split
from timm_wsms.evaluation import setup
from timm_wsms.evaluation.object_size.trained_range import trained_sizes
from timm_wsms.evaluation.options import AccuracyOptions
from timm_wsms.hub import backbone_folder, card, diff, published, verify_folder
from timm_wsms.hub.client import Remote
from timm_wsms.hub.download import file_sum
from timm_wsms.network.cascade import Cascade
from timm_wsms.training import checkpoint, settings

MODEL = ROOT / "hub" / "models" / "wsms_resnet20_sizes_cifar10"
DATA = b"""{"source": "x/y",
 "classes": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
 "splits": {"test": {"name": "test", "images": 4, "images_per_class": {"bird": 2, "cat": 2},
 "looked_at": 4, "modes": {"RGB": 4}, "width": [4, 8], "height": [4, 4],
 "passed_over": {"hidden files": {"files": 4, "first": ["x", "y"]}}}}, "only_in": {"test": ["cat"]},
 "beside": {"no images": {"files": 1, "first": ["README"]}}, "remarks": ["a remark"]}"""
CASCADE = b'{"factors": [0.5, 1.0], "confidence": [0.9], "temperatures": [1.5]}'
PUBLISHED = b"""[{"name": "wsms_resnet18", "tag": "a", "repo": "x/y", "revision": "0", "sha256": "0", "accuracy": 1.0,
 "config": {"input_size": [3, 32, 32], "num_classes": 10, "mean": [0.5, 0.5, 0.5], "classifier": "backbone.fc"}}]"""


def _rendered(folder: Path) -> str:
    """The folder's card without its picture of the network, which takes 2 s; "config" reads what that is drawn from."""
    with mock.patch.object(card, "_picture", return_value="a picture"):
        return card.render(folder, "someone/else")


def prepare(place: Path) -> Path:
    """A checkpoint folder to spoil."""
    folder = Path(shutil.copytree(MODEL, place / "model"))
    (folder / "data.json").write_bytes(DATA)
    (folder / "cascade.json").write_bytes(CASCADE)
    return folder


@functools.cache
def _evaluation() -> tuple[Any, Any, Any]:
    options = AccuracyOptions(data="digits", limit=4, batch_size=2, workers=0)
    return load_split(DataSettings(), limit=4), options, setup.start(options)


def _evaluated(folder: Path, _: Path) -> None:
    """As `python -m timm_wsms.evaluate` does it."""
    split, options, accelerator = _evaluation()
    found = setup.prepare(str(folder), split, options, accelerator)
    found.ordered.eval()(found.images(split, [0]))


def _config(folder: Path, _: Path) -> None:
    verify_folder.check_config(folder)
    verify_folder.load(folder)


def _card(folder: Path, _: Path) -> str:
    text = _rendered(folder)
    trained_sizes(folder, 1.0, 32)
    return text


def _results(folder: Path, _: Path) -> str:
    verify_folder.check_results(folder)
    backbone_folder.measured(folder, 1)
    return _rendered(folder)


def _weights(folder: Path, _: Path) -> None:
    verify_folder.check_run(folder)
    verify_folder.load(folder)


def _tensors(folder: Path, _: Path) -> None:
    verify_folder.check_outputs(_kept(folder), folder)


def _cascade(folder: Path, _: Path) -> None:
    Cascade.from_folder(folder, _kept(folder))


def _readme(_: Path, file: Path) -> str:
    """What would be changed in a README that lies in a repo."""
    api: Any = SimpleNamespace(hf_hub_download=lambda *_, **__: file)
    there = Remote("0" * 40, {"README.md": "0" * 40}, {"README.md": 1}, False)
    return diff.describe(api, "someone/else", {"README.md": b"---\nlicense: mit\n---\n# A model\n"}, there)


@functools.cache
def _run() -> tuple[Any, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


@functools.cache
def _checkpoint() -> Path:
    return checkpoint.save_run_state(Path(tempfile.mkdtemp()), checkpoint.Position(1), *_run(), extra={"updates": 1})


def _resumed(name: str) -> Callable[[Path, Path], None]:
    """Reads a checkpoint of which one file is another's; its sum is right."""

    def read(_: Path, file: Path) -> None:
        folder = Path(shutil.copytree(_checkpoint(), file.parent / "epoch-0001", dirs_exist_ok=True))
        shutil.copyfile(file, folder / name)
        if name != checkpoint.MANIFEST:
            sums = json.loads((folder / checkpoint.MANIFEST).read_bytes())
            sums[name] = file_sum(file, "sha256")
            (folder / checkpoint.MANIFEST).write_text(json.dumps(sums))
        checkpoint.load_run_state(folder, *_run())

    return read


_MODELS: list[Any] = []


def _kept(folder: Path) -> Any:
    """The folder's model, loaded once: of these readers' files it is none."""
    if not _MODELS:
        _MODELS.append(verify_folder.load(folder))
    return _MODELS[0]


def _recipe(_: Path, file: Path) -> None:
    settings.parse(["--recipe", str(file), "--model", "wsms_resnet18"])


def _recipes() -> list[bytes]:
    return [file.read_bytes() for file in sorted((ROOT / "recipes").glob("*.yaml"))]


def _published(_: Path, file: Path) -> None:
    for entry in published.published(file):
        entry.pretrained_cfg()


def _file(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(MODEL / name).read_bytes()]


READERS = {  # those of files from the Hub first
    "config": Reader("json", _file("config.json"), "config.json", _config),
    "evaluated": Reader("json", _file("config.json"), "config.json", _evaluated),
    "weights": Reader("safetensors", _file("model.safetensors"), "model.safetensors", _weights),
    "tensors": Reader("safetensors", _file("test/tensors.safetensors"), "test/tensors.safetensors", _tensors),
    "settings": Reader("yaml", _file("settings.yaml"), "settings.yaml", _card),
    "metrics": Reader("json lines", _file("metrics.jsonl"), "metrics.jsonl", _results),
    "results": Reader("json", _file("results.json"), "results.json", _results),
    "data": Reader("json", lambda: [DATA], "data.json", _card),
    "readme": Reader("bytes", _file("README.md"), "", _readme),
    "cascade": Reader("json", lambda: [CASCADE], "cascade.json", _cascade),
    "recipe": Reader("yaml", _recipes, "", _recipe),
    "state": Reader("json", lambda: [(_checkpoint() / "state.json").read_bytes()], "", _resumed("state.json")),
    "manifest": Reader("json", lambda: [(_checkpoint() / "manifest.json").read_bytes()], "", _resumed("manifest.json")),
    "published": Reader("json", lambda: [PUBLISHED], "", _published),
    **DATA_READERS,
}
