"""The benchmark of data parallelism: its bytes against sums over the networks, its ratios against its own medians."""

import importlib
import json
from statistics import median

import pytest
import timm

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # a benchmark


@pytest.fixture
def scaling():
    return importlib.import_module("benchmarks.speed.data_parallel")


def check(found: dict, name: str) -> None:
    """Checks what a report says of a network's exchange against the network itself."""
    network = timm.create_model(name)
    sizes = {key: 4 * parameter.numel() for key, parameter in network.named_parameters()}
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    told = found["communication"]
    assert told["gradient_bytes"] == sum(sizes.values()) == told["ddp_logger"]["total_parameter_size_bytes"]
    buckets = told["gradient_bytes_of_each_bucket"]
    assert sum(buckets) == told["gradient_bytes"]
    assert buckets == [int(size) for size in told["ddp_logger"]["rebuilt_bucket_sizes"].split(",")]
    assert told["buffer_bytes"] == buffers
    parts = told["gradient_bytes_by_part"]
    assert sum(parts.values()) == told["gradient_bytes"]
    if name.startswith("wsms_"):
        integration = sum(size for key, size in sizes.items() if key.startswith("integration."))
        plain = sum(4 * parameter.numel() for parameter in timm.create_model(name.removeprefix("wsms_")).parameters())
        assert (parts["integration"], parts["backbone"]) == (integration, plain)


def test_it_runs_and_counts_what_is_exchanged(scaling, tmp_path):
    out = tmp_path / "scaling.json"
    models = ["test_resnet", "wsms_test_resnet"]
    few = ["--batch_size", "2", "--size", "64", "--steps", "1", "--rounds", "2", "--out", str(out)]
    scaling.main(["--models", *models, *few])
    report = json.loads(out.read_text())
    assert {"machine", "versions", "command", "batch_size_per_process"} <= report.keys()
    for name in models:
        check(report["models"][name], name)
        speed = report["models"][name]["speed"]
        for side in ("alone", "apart", "together"):
            assert len(speed[side]["each"]) == 2 and min(speed[side]["each"]) > 0
            assert speed[side]["median"] == pytest.approx(median(speed[side]["each"]), abs=0.002)
        expected = speed["together"]["median"] / speed["alone"]["median"]
        assert speed["two_to_one"] == pytest.approx(expected, rel=0.01, abs=0.002)


def test_the_committed_report_is_of_these_networks():
    report = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())
    assert set(report["models"]) == {"resnet50", "wsms_resnet50"}
    for name, found in report["models"].items():
        check(found, name)
