"""The Python in docs/ and examples/README.md runs as it is written, on a small network, and does what is said there."""

import re
import shutil

import pytest
import timm
import torch

import timm_wsms
from tests.helpers.paths import ROOT
from tests.helpers.snippets import run_snippet

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]


def code(page: str) -> str:
    (found,) = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return found


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A small averaging network, saved where the pages look for one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = timm.create_model("wsmean_test_resnet", num_classes=3).eval()
    timm.models.save_for_hf(network, "outputs/mine/model", safe_serialization=True)
    return network


@pytest.fixture
def images():
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_these_are_the_pages_with_code():
    """A page that gets some gets a test here."""
    pages = [str(path.relative_to(ROOT)) for path in PAGES if BLOCK.search(path.read_text(encoding="utf-8"))]
    tested = ["adapters", "add_a_backbone_family", "cascade", "compatibility", "hub"]  # the second quotes a table's row
    assert pages == [*(f"docs/{name}.md" for name in tested), "examples/README.md"]


@pytest.mark.parametrize("page", ["docs/hub.md", "examples/README.md"])
@torch.no_grad()
def test_a_plain_backbone(saved, images, page):
    held_out = torch.randn(560, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    names = run_snippet(code(page), images=images, validation_batches=[(held_out, saved(held_out).argmax(1))])
    if page == "examples/README.md":  # the small image first, too
        assert names["logits"].shape == (8, saved.num_classes) and names["cascade"].last_cost <= 1.25
    plain = timm.create_model("local-dir:plain", pretrained=True).eval()
    assert not isinstance(plain, timm_wsms.WsmsMeanNet)
    assert torch.equal(plain(images), saved.stage_logits(images)[0])


@pytest.mark.slow
@torch.no_grad()
def test_the_small_image_first(tmp_path, monkeypatch):
    """With a trained network, whose stages differ where they are not sure."""
    monkeypatch.chdir(tmp_path)
    folder = "outputs/finetune_folder/model"
    shutil.copytree(ROOT / "hub" / "models" / "wsms_resnet20_sizes_cifar10", folder)
    saved = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    coarse = torch.randn(700, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    held_out, images = torch.nn.functional.interpolate(2 * coarse, (32, 32), mode="bicubic").split([600, 100])
    labels = torch.cat([saved(part) for part in held_out.split(100)]).argmax(1)
    batches = list(zip(held_out.split(100), labels.split(100), strict=True))
    names = run_snippet(code("docs/cascade.md"), images=images, validation_batches=batches)
    stages = saved.stage_logits(images)
    exits = torch.stack([stages[1], stages.mean(0)])  # the half-size image is stage 2
    confidence = (stages[1] / names["cascade"].temperatures[0]).softmax(1).amax(1)
    taken = (confidence < names["cascade"].confidence[0]).long()
    assert 0 < taken.sum() < len(taken)
    torch.testing.assert_close(names["logits"], exits[taken, torch.arange(len(images))])


@pytest.mark.slow  # imports PEFT
def test_adapters():
    written = code("docs/adapters.md").replace("wsms_resnet50", "wsms_test_resnet").replace("pretrained=True, ", "")
    torch.manual_seed(0)
    model = run_snippet(written)["model"]
    torch.manual_seed(0)
    fresh = timm.create_model("wsms_test_resnet", fusion="mean", num_classes=10)
    # adapters start at zero, so without training the merged network is the one that they were added to
    torch.testing.assert_close(model.state_dict(), fresh.state_dict())


@pytest.mark.slow  # an export
@torch.no_grad()
def test_an_export_for_small_sides(images):
    torch.manual_seed(0)
    small = {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16), "num_classes": 5}
    network = timm.create_model("wsmean_resnet18", **small).eval()
    names = {"torch": torch, "Dim": torch.export.Dim, "model": network, "images": images[:2]}
    program = run_snippet(code("docs/compatibility.md"), **names)["program"]
    other = torch.randn(2, 3, 40, 33)
    torch.testing.assert_close(program.module()(other), network(other))
