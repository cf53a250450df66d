"""The variants of benchmarks/cifar10/variants.py are what they are called, and a sweep can be taken up again."""

import json

import pytest
import torch

from tests.helpers.paths import ROOT
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import parse

pytestmark = pytest.mark.slow  # a benchmark


@pytest.fixture
def why():
    from benchmarks.cifar10 import variants as cifar10_variants

    return cifar10_variants


def stage_inputs(network: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What stages 2 and 3 are given in a forward pass."""
    seen = []
    for stage in network.stages.values():
        stage.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        network.eval()(images)
    return seen


@pytest.mark.parametrize(
    ("name", "halve"),
    [
        ("paper", lambda cells: cells.mean((-3, -1))),
        ("pyramid by 2×2 maximum", lambda cells: cells.amax((-3, -1))),
        ("pyramid by subsampling", lambda cells: cells[..., 0, :, 0]),
    ],
)
def test_stages_get_the_image_halved_the_variants_way(why, name, halve):
    images = torch.randn(2, 3, 32, 32)
    half = halve(images.reshape(2, 3, 16, 2, 16, 2))
    quarter = halve(half.reshape(2, 3, 8, 2, 8, 2))
    found = stage_inputs(why.make_network(why.VARIANTS[name], 10), images)
    torch.testing.assert_close(found, [half, quarter])


def test_gamma_learns_ten_times_as_fast_through_the_whole_schedule(why):
    settings = parse(["--recipe", str(ROOT / "recipes" / "cifar10_resnet20_short.yaml"), "--epochs", "1"])
    variant = why.VARIANTS["residual, learning rate of γ × 10"]
    network = why.make_network(variant, 10)
    optimizer = why.make_optimizer(network, variant, settings)
    rest, gamma = optimizer.param_groups
    assert [id(parameter) for parameter in gamma["params"]] == [id(network.integration.gamma)]
    listed = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(listed) == sorted(map(id, network.parameters()))
    schedule = Schedule(optimizer, settings, updates_per_epoch=20)
    for update in range(20):
        assert schedule.set(update) == rest["lr"]
        assert gamma["lr"] == pytest.approx(10 * rest["lr"])
    assert {key: gamma[key] for key in ("momentum", "nesterov", "weight_decay")} == {
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    }


def test_variants_differ_in_what_they_name(why):
    def shape(name):
        network = why.make_network(why.VARIANTS[name], 10)
        return len(network.stages) + 1, network.integration.conv.out_channels, network.integration.gamma is not None

    assert shape("paper") == (3, 128, False)
    assert shape("residual") == shape("residual, learning rate of γ × 10") == (3, 64, True)
    assert shape("integration_channels 64") == (3, 64, False)
    assert shape("integration_channels 256") == (3, 256, False)
    assert shape("2 stages") == (2, 128, False)


def test_a_sweep_is_taken_up_where_it_stopped(why, tmp_path):
    words = ["--source", "digits", "--train_limit", "256", "--test_limit", "30", "--epochs", "1", "--seeds", "0"]
    recipe = (ROOT / "recipes" / "cifar10_resnet20_short.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(recipe.replace("precision: bf16", "precision: 'no'"))  # which a CPU emulates
    words += ["--results", str(results := tmp_path / "why.json"), "--recipe", str(tmp_path / "recipe.yaml")]
    why.main([*words, "--forms", "plain"])
    record = tmp_path / "why" / "plain_short_seed0.json"
    record.write_text(record.read_text().replace('"test_top1": ', '"test_top1": 100'))
    why.main([*words, "--forms", "plain", "residual"])
    plain, residual = json.loads(results.read_text())["forms"]
    assert (plain["form"], residual["form"]) == ("plain", "residual") and plain["test_top1"]["mean"] >= 100
    found = json.loads((tmp_path / "why" / "residual_short_seed0.json").read_text())
    assert len(found["without_stage"]) == 3 and found["gamma_mean"] != 1
    with pytest.raises(SystemExit, match="of other settings"):
        why.main([*words, "--epochs", "2"])
