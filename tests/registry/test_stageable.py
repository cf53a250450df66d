"""The committed table of what can be staged is what its command finds."""

import json

import pytest
import timm

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.tiers import slow_except
from timm_wsms.registry import stageable

TABLE = json.loads(stageable.TABLE.read_text())
# one for each answer, and for each kind of map
SAMPLE = ["test_resnet", "test_mambaout", "densenet121", "hrnet_w18_small", "efficientvim_m1", "mobilenetv5_300m_enc"]
SAMPLE += ["test_vit", "swin_tiny_patch4_window7_224", "haloregnetz_b", "crossvit_9_240", "pit_ti_224"]
SAMPLE += ["resmlp_12_224", "resnet20_cifar"]


def backbones() -> set[str]:
    """timm's own, whatever other tests have registered meanwhile."""
    entrypoints = {name: timm.model_entrypoint(name) for name in timm.list_models()}
    return {name for name, entrypoint in entrypoints.items() if entrypoint.__module__.startswith("timm.models")}


def test_the_table_answers_for_every_architecture_of_its_timm():
    known = set(TABLE["stageable"]) | set(TABLE["not_stageable"])
    assert not set(TABLE["stageable"]) & set(TABLE["not_stageable"])
    assert TABLE["timm"] != timm.__version__ or backbones() <= known
    assert len(TABLE["stageable"]) > 1300


def test_those_that_take_one_size_only_are_known():
    assert {*TABLE["not_mean"]} <= {*TABLE["stageable"]}
    for name in ("efficientformer_l1", "test_resnet", "test_vit"):
        assert stageable.reason_against_mean(name) == TABLE["not_mean"].get(name)
    assert "efficientformer_l1" in TABLE["not_mean"] and "test_vit" not in TABLE["not_mean"]


def check(name: str) -> None:
    assert (stageable.reason_against(name) is None) == (name in TABLE["stageable"])
    if name in TABLE["not_stageable"]:
        assert stageable.reason_against(name) == TABLE["not_stageable"][name]


@pytest.mark.parametrize(
    "name", slow_except(SAMPLE, "test_resnet", "test_mambaout", "test_vit", "crossvit_9_240", "resnet20_cifar")
)
def test_the_table_is_right(name):
    check(name)


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(set(TABLE["stageable"]) | set(TABLE["not_stageable"])))
def test_the_table_is_right_for_every_name(name):
    check(name)


def test_the_command_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stageable, "TABLE", tmp_path / "stageable.json")
    models = {"": ["test_resnet", "test_nfnet", "wsms_test_resnet"], "wsms": ["wsms_test_resnet"]}
    monkeypatch.setattr(timm, "list_models", lambda module="": models[module])
    table = {"timm": timm.__version__, "stageable": [], "not_stageable": {"test_nfnet": "as found before"}}
    table["not_mean"] = {}
    stageable.TABLE.write_text(json.dumps(table))
    stageable.main()
    assert json.loads(stageable.TABLE.read_text()) == {**table, "stageable": ["test_resnet"]}
    assert "1 architectures can be staged, 1 cannot" in capsys.readouterr().out
