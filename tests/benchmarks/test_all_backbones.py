"""One backbone of each of timm's model files, the smallest, goes through the checks of all_backbones.py."""

import csv
import importlib
import json
import sys

import pytest
import timm
import torch

from tests.helpers.paths import ROOT
from timm_wsms import WsmsNet
from timm_wsms.registry import stageable

pytestmark = pytest.mark.slow  # one backbone of every family of timm

TABLE = ROOT / "benchmarks" / "results" / "coverage.csv"
REASONS = json.loads(stageable.TABLE.read_text())["not_stageable"]


def rows():
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


SAMPLE = {row["file"]: row for row in reversed(rows())}  # the table begins with the smallest
NAMES = {row["name"]: row for row in SAMPLE.values()}
# Large ones of many equal blocks with fewer of them, or narrower; in full with `make sweep`, and in coverage.csv.
SHORTER = {
    "beit_base_patch16_224": {"depth": 3},
    "cait_xxs24_224": {"depth": 4},
    "coat_tiny": {"parallel_depth": 2},
    "densenet121": {"block_config": (2, 3, 3, 2)},
    "efficientformer_l1": {"depths": (1, 1, 2, 2)},
    "gemma4_vit_167m": {"depth": 2},
    "qwen3_vit_88m": {"depth": 3},
    "res2next50": {"layers": (1, 2, 2, 1)},
    "samvit_base_patch16_224": {"depth": 2, "global_attn_indexes": (1,)},
    "sequencer2d_s": {"layers": (1, 1, 2, 1)},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 2, 1)},
    "swinv2_cr_tiny_224": {"depths": (2, 2, 2, 1)},
    "swinv2_tiny_window16_256": {"depths": (2, 2, 2, 1)},
    "tnt_s_legacy_patch16_224": {"depth": 3},
    "tresnet_m": {"layers": (1, 2, 2, 1)},
    "twins_svt_small": {"depths": (1, 1, 2, 1)},
}
CASES = [pytest.param(name, SHORTER.get(name, {}), id=name) for name in sorted(NAMES)]
IN_FULL = [pytest.param(name, {}, id=f"{name} in full", marks=pytest.mark.sweep) for name in SHORTER]


@pytest.fixture
def benchmark():
    """Imports a script of benchmarks/."""
    torch.set_num_threads(1)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def check(benchmark):
    def check_one(name, **form):
        row = NAMES.get(name, {"backbone_params": "1"})
        return benchmark("backbones.checks").check(
            {"name": name, "backbone_params": row["backbone_params"]}, timeout=120, **form
        )

    return check_one


@pytest.mark.parametrize(("name", "form"), [*CASES, *IN_FULL])
def test_the_smallest_backbone_of_each_model_file(check, name, form):
    found = check(name, **form)
    if name in REASONS:
        assert found["checked"] == "not staged" and REASONS[name] in found["error"]
        assert not timm.is_model(f"wsms_{name}")
    else:
        verdicts = {key: found[key] for key in ("forward", "backward", "state_dict", "warm_start")}
        assert not found["error"]
        assert set(verdicts.values()) == {"ok"}


def test_every_model_file_of_timm_is_there():
    assert {*SHORTER} <= {*NAMES}
    files = {key for key in timm.models.list_modules() if hasattr(timm.models, key)}
    assert {row["timm"] for row in rows()} != {timm.__version__} or files == set(SAMPLE)
    assert len(rows()) == len({row["name"] for row in rows()}) > 1300


# ---- the checks notice what is wrong


def test_a_good_network_passes(check):
    found = check("test_resnet")
    assert found["error"] == "" and found["checked"] == "real" and found["input_size"] == "64x64"
    assert int(found["wsms_params"]) == sum(p.numel() for p in timm.create_model("wsms_test_resnet").parameters())


def test_logits_that_differ_in_the_last_digit(check, monkeypatch):
    own = WsmsNet.forward
    monkeypatch.setattr(WsmsNet, "forward", lambda self, x: own(self, x) * (1 + 2**-22))
    found = check("test_resnet")
    assert (found["forward"], found["backward"], found["state_dict"], found["warm_start"]) == (
        "ok",
        "ok",
        "ok",
        "failed",
    )
    assert found["error"].startswith("warm_start: logits differ by ")


def test_stages_that_do_not_reach_the_logits(check, monkeypatch):
    monkeypatch.setattr(WsmsNet, "forward", lambda self, x: self.backbone(x))
    found = check("test_resnet")
    assert found["backward"] == "failed" and "no gradient for stages." in found["error"]
    monkeypatch.setattr(
        WsmsNet, "forward", lambda self, x: self.backbone(x) + 0 * WsmsNet.forward_features(self, x).sum()
    )
    found = check("test_resnet")
    assert found["backward"] == "failed" and "a gradient of zeros for stages." in found["error"]


def test_a_tensor_that_the_state_dict_lacks_or_changes(check, monkeypatch):
    own = WsmsNet.state_dict
    monkeypatch.setattr(WsmsNet, "state_dict", lambda self: {k: v for k, v in own(self).items() if "gamma" not in k})
    found = check("test_resnet")
    assert found["state_dict"] == "failed" and "Missing key(s)" in found["error"]
    monkeypatch.setattr(WsmsNet, "state_dict", lambda self: {k: v * (1 + 2**-10) for k, v in own(self).items()})
    found = check("test_resnet")
    assert found["state_dict"] == "failed" and "logits differ by" in found["error"]


def test_time_is_limited(benchmark, monkeypatch):
    checks = benchmark("backbones.checks")
    monkeypatch.setattr(checks, "_check_real", lambda *_: all(number == 0 for number in iter(int, 1)))
    found = checks.check({"name": "test_resnet", "backbone_params": "1"}, timeout=1)
    assert found["error"] == "OutOfTimeError: more than 1 s"
    assert float(found["cpu_seconds"]) < 5


# ---- the table


def test_main_goes_on_where_it_stopped(benchmark, tmp_path, capsys):
    out = tmp_path / "coverage.csv"
    options = ["--names", "test_resnet", "test_convnext", "--out", str(out)]
    coverage = benchmark("backbones.all_backbones")
    coverage.main([*options, "--limit", "1"])
    table = coverage.Table(out)
    assert [(row["name"], row["checked"]) for row in table.read().values()] == [
        ("test_convnext", "real"),
        ("test_resnet", ""),
    ]
    assert capsys.readouterr().out.endswith("1 ok, 1 not tried yet\n")
    table.update([table.read()["test_convnext"] | {"cpu_seconds": "as it was", "warm_start": "failed"}])
    coverage.main(options)
    assert capsys.readouterr().out.endswith("1 failed, 1 ok\n")
    assert table.read()["test_convnext"]["cpu_seconds"] == "as it was"
    coverage.main([*options, "--retry", "--minutes", "0"])
    assert table.read()["test_convnext"]["cpu_seconds"] == "as it was"
    coverage.main([*options, "--retry"])
    assert capsys.readouterr().out.endswith("2 ok\n")
    assert {path.name for path in tmp_path.iterdir()} == {"coverage.csv"}


def test_a_row_says_when_its_process_was_killed(benchmark, tmp_path, monkeypatch):
    coverage = benchmark("backbones.all_backbones")
    monkeypatch.setattr(coverage, "check", lambda *_: sys.exit("killed"))
    options = ["--names", "test_resnet", "--out", str(tmp_path / "coverage.csv")]
    with pytest.raises(SystemExit):
        coverage.main(options)
    coverage.main(options)  # does not run into it again
    assert coverage.Table(tmp_path / "coverage.csv").read()["test_resnet"]["error"].startswith("interrupted")


def test_shards_share_the_names(benchmark, tmp_path, monkeypatch):
    coverage = benchmark("backbones.all_backbones")
    monkeypatch.setattr(coverage, "backbones", lambda: ["test_resnet", "test_vit", "test_convnext"])
    monkeypatch.setattr(
        coverage, "check", lambda row, _: row | {"checked": "real"} | dict.fromkeys(coverage.CHECKS, "ok")
    )
    for shard, names in (
        ("1/2", {"test_resnet", "test_convnext"}),
        ("2/2", {"test_resnet", "test_convnext", "test_vit"}),
    ):
        coverage.main(["--shard", shard, "--out", str(tmp_path / "coverage.csv")])
        assert set(coverage.Table(tmp_path / "coverage.csv").read()) == names


def test_random_numbers_are_cheap_only_where_asked(benchmark):
    own = torch.Tensor.normal_, torch.Tensor.uniform_
    with benchmark("common.random_networks").cheap_random_numbers():
        layer = torch.nn.Linear(1000, 2000)
        other = torch.nn.init.trunc_normal_(torch.empty(100, 100), std=0.5)
    assert (torch.Tensor.normal_, torch.Tensor.uniform_) == own
    assert layer.weight.unique(dim=0).shape == (2000, 1000)
    assert layer.weight.std().item() == pytest.approx(1000**-0.5 / 3**0.5, rel=0.01)
    assert other.std().item() == pytest.approx(0.5, rel=0.2)
