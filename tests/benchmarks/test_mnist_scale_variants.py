"""The variants of benchmarks/mnist_scale/variants.py are what they are called, and train."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.mnist_scale import variants as mnist_variants

pytestmark = pytest.mark.slow  # a benchmark

IMAGES = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def network_of(name):
    torch.manual_seed(0)
    return mnist_variants.make_network(mnist_variants.VARIANTS[name])


def stages_of(network, images=IMAGES):
    """Each stage by itself: hidden units (S, B, n) and logits (S, B, classes)."""
    inner = network.network
    parts = [*zip(inner.backbones(), inner.pyramid(images), strict=True)]
    hidden = [part.forward_head(part.forward_features(image), pre_logits=True) for part, image in parts]
    return torch.stack(hidden), torch.stack([part(image) for part, image in parts])


def test_no_variant_has_more_than_half_a_million_parameters():
    for name in mnist_variants.VARIANTS:
        parameters = {*network_of(name).parameters()}
        count = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        assert 480_000 < count < 500_000, name


@pytest.mark.parametrize("name", ["mean", "stage dropout", "loss of each stage", "attention", "2 1.4 1 0.7"])
def test_it_starts_as_the_network_of_the_package(name):
    network = network_of(name).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES), network.network(IMAGES))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("maximum", lambda hidden, logits, classify: logits.max(0).values),
        ("log-sum-exp", lambda hidden, logits, classify: logits.exp().sum(0).log()),
        ("mean of features", lambda hidden, logits, classify: classify(sum(hidden) / 3)),
        ("maximum of features", lambda hidden, logits, classify: classify(hidden.max(0).values)),
    ],
)
def test_rules(name, rule):
    network = network_of(name).eval()
    with torch.no_grad():
        expected = rule(*stages_of(network), network.network.backbone.fc)
        torch.testing.assert_close(network(IMAGES), expected)


def test_attention_weights_stages_by_their_scores():
    network = network_of("attention").eval()
    with torch.no_grad():
        torch.nn.init.normal_(network.score.weight)
        hidden, logits = stages_of(network)
        scores = (hidden @ network.score.weight[0]).exp()
        expected = (scores[..., None] * logits).sum(0) / scores.sum(0)[:, None]
        torch.testing.assert_close(network(IMAGES), expected)


def test_smaller_images_by_maximum():
    network = network_of("1 0.5, halved by maximum")
    image, half = network.network.pyramid(IMAGES)
    assert image is IMAGES
    torch.testing.assert_close(half, IMAGES.reshape(6, 1, 14, 2, 14, 2).amax((3, 5)))


def test_stage_dropout_leaves_out_some_but_not_all():
    torch.manual_seed(0)
    x = torch.tensor([1.0, 10.0, 100.0])[:, None, None].expand(3, 4000, 1)
    means = mnist_variants.mean_of_some(x, 0.3)[:, 0]
    subsets = [[1], [10], [100], [1, 10], [1, 100], [10, 100], [1, 10, 100]]
    counts = {tuple(some): torch.isclose(means, torch.tensor(np.mean(some)).float()).sum().item() for some in subsets}
    assert sum(counts.values()) == 4000
    assert counts[1, 10, 100] / 4000 == pytest.approx(0.7**3, abs=0.03)
    assert counts[10, 100] / 4000 == pytest.approx(0.3 * 0.7**2, abs=0.03)
    assert counts[1,] / 4000 == pytest.approx(0.3**2 * 0.7 + 0.3**3 / 3, abs=0.02)


@pytest.mark.parametrize("name", ["mean", "loss of each stage"])
def test_loss(name):
    network = network_of(name)
    for module in network.modules():  # what it computes is then the same in training
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    for part in network.network.backbones():
        part.drop_rate = 0.0
    settings = mnist_variants.parse(["--recipe", str(mnist_variants.ROOT / mnist_variants.RECIPE)])
    loss = mnist_variants.make_task(network, mnist_variants.VARIANTS[name], settings)(IMAGES, LABELS)["loss"]
    cross_entropy = torch.nn.functional.cross_entropy
    _, logits = stages_of(network)
    expected = cross_entropy(logits.mean(0), LABELS)
    if name != "mean":
        expected = expected + sum(cross_entropy(stage, LABELS) for stage in logits) / 3
    torch.testing.assert_close(loss, expected)


def test_a_search_runs_and_goes_on(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(pixels) for pixels in rng.integers(0, 256, (130, 28, 28), dtype=np.uint8)]
    columns = {"image": images, "label": [number % 10 for number in range(130)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*"0123456789"])})
    for split in ("train", "test"):
        folder = tmp_path / "data" / "seed0"
        folder.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    results = tmp_path / "search.json"
    words = ["--realizations", str(tmp_path / "data"), "--results", str(results), "--seeds", "0", "--epochs", "1"]
    words += ["--train_limit", "128", "--test_limit", "40", "--forms", "plain"]
    mnist_variants.main(words)
    (path,) = (tmp_path / "search").iterdir()
    first = json.loads(path.read_text())
    assert first["test_top1"] in [2.5 * n for n in range(41)]
    mnist_variants.main([*words, "concat", "attention", "loss of each stage"])
    assert json.loads(path.read_text()) == first  # not trained again
    report = json.loads(results.read_text())
    assert [row["form"] for row in report["forms"]] == ["plain", "concat", "attention", "loss of each stage"]
