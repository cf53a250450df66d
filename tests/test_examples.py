"""The examples run as they are, on tiny data and without a network."""

import os
import shutil

import nbformat
import numpy as np
import pytest
import timm
import torch
from nbclient import NotebookClient
from PIL import Image
from safetensors.torch import load_file

import timm_wsms
from examples import bare_loop, cascade_onnx
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # notebooks, each with a kernel of its own
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What the notebooks need of the repository, so that they write nothing into it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("pyproject.toml", "train_accelerate.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("timm_wsms", "recipes", "hub"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_there_are_three_notebooks_without_outputs():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        book = nbformat.read(path, as_version=4)
        assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("01_quickstart", ["averaging: ", "objects at 2 times their size", "stage 2:", "loss "]),
        ("02_your_own_folder", ["wsmean_test_resnet", "Checkpoint folder", "predicted digit_"]),
        ("03_size_curve", ["wsmean_tf_efficientnet_lite0_flowers", "image/png"]),
    ],
)
def test_a_notebook_runs(name, said, clone, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ASSETS_CACHE", str(clone / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(clone), os.environ.get("PYTHONPATH", "")]))
    book = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(clone)}}).execute()
    outputs = str([cell.outputs for cell in book.cells if cell.cell_type == "code"])
    assert [words for words in said if words not in outputs] == []


def test_the_bare_loop_learns_and_saves_what_it_learned(tmp_path, capsys):
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for label, level in (("dark", 60), ("light", 190)):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (level + random.integers(-40, 40, (32, 32, 3))).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.png")
    words = [
        "--from_scratch",
        "--model",
        "wsmean_test_resnet",
        "--input_size",
        "32",
        "--epochs",
        "6",
        "--batch_size",
        "8",
    ]
    output = tmp_path / "out" / "weights.safetensors"
    torch.manual_seed(0)
    accuracy = bare_loop.main([str(tmp_path), *words, "--lr", "0.01", "--workers", "0", "--output", str(output)])
    assert accuracy >= 75 and "epoch 6/6" in capsys.readouterr().out
    model = timm.create_model("wsmean_test_resnet", num_classes=2)
    model.load_state_dict(load_file(output))  # strict


def test_a_cascade_in_onnxruntime_answers_as_in_pytorch(tmp_path):
    """Each stage is a graph; images that leave early and images that go on, alone and in a batch."""
    model = timm.create_model(f"local-dir:{ROOT}/hub/models/wsms_resnet20_sizes_cifar10", pretrained=True).eval()
    cascade = timm_wsms.Cascade(model, confidence=0.6, temperatures=1.5)
    paths = cascade_onnx.export(cascade.stages, (3, 32, 32), tmp_path)
    run = cascade_onnx.OnnxCascade(paths, cascade.confidence, cascade.temperatures)
    x = 2 * torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for images in (x, x[:1]):
        expected = cascade(images)
        torch.testing.assert_close(torch.from_numpy(run(images.numpy())), expected, rtol=1e-4, atol=1e-4)
    cascade(x)
    assert 0 < int((cascade.last_exits == 1).sum()) < 9


def test_the_cascade_example_runs(tmp_path, capsys):
    cascade_onnx.main(str(ROOT / "hub/models/wsms_resnet20_sizes_cifar10"), str(tmp_path))
    printed = capsys.readouterr().out
    assert float(printed.splitlines()[0].split()[-1]) < 1e-4 and "of 8 images" in printed
