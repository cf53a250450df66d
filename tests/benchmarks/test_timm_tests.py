"""timm_tests.py on a test file of three tests: which names they get, what is noted, where it goes on."""

import importlib
import json
import sys

import pytest
import timm

pytestmark = pytest.mark.slow  # a benchmark

TESTS = """
import pytest, timm
from timm import list_models, create_model, list_pretrained

EARLY_POOL_MODELS = (timm.models.VGG, timm.models.ResNet)
calls = []

@pytest.mark.parametrize("model_name", list_models(exclude_filters=["test_conv*"], include_tags=True))
def test_build(model_name):
    calls.append(model_name)
    model = create_model(model_name)
    assert isinstance(model, EARLY_POOL_MODELS) == (model_name.partition(".")[0] in ("test_resnet", "wsms_test_resnet"))
    assert model_name.startswith("test_")

@pytest.mark.parametrize("model_name", list_models(module=["resnet", "convnext"]))
def test_ours_fails(model_name):
    if "convnext" in model_name:
        pytest.skip("too large")
    assert not model_name.startswith("wsms_"), "it is ours"

@pytest.mark.parametrize("model_name", list_models())
def test_both_fail(model_name):
    raise ValueError(f"two\\nlines {len(calls)}")

@pytest.mark.parametrize("model_name", list_models())
def test_torchscript(model_name): assert False

@pytest.mark.parametrize("model_name", ["test_resnet"])
def test_one_name(model_name): assert False

@pytest.mark.parametrize("model_name", list_models(pretrained=True) + list_pretrained("test_*"))
def test_pretrained(model_name): assert False
"""


@pytest.fixture
def run(tmp_path):
    suite = importlib.import_module("benchmarks.backbones.timm_tests")
    for path, text in (("timm/version.py", "__version__ = '9.9'"), ("tests/test_models.py", TESTS)):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(text)

    def run_suite(*options):
        out = tmp_path / "suite.json"
        options += ("--timm", str(tmp_path), "--table", str(tmp_path / "coverage.csv"), "--out", str(out))
        suite.main(["--names", "test_resnet", "test_convnext", "test_efficientnet", *options])
        sys.modules.pop("test_models", None)
        return json.loads(out.read_text())

    return run_suite


def test_names_outcomes_and_tally(run):
    lists = timm.list_models, timm.list_pretrained
    found = run()
    assert (timm.list_models, timm.list_pretrained) == lists
    both = "failed: ValueError: two lines {} (test_models.py:23)"
    assert found["outcomes"] == {
        "wsms_test_convnext": {"test_both_fail": both.format(0), "test_ours_fails": "skipped: Skipped: too large"},
        "test_convnext": {"test_both_fail": both.format(0)},
        "wsms_test_efficientnet": {"test_both_fail": both.format(0), "test_build": "passed"},
        "test_efficientnet": {"test_both_fail": both.format(0)},
        "wsms_test_resnet": {
            "test_both_fail": both.format(1),
            "test_build": "passed",
            "test_ours_fails": found["outcomes"]["wsms_test_resnet"]["test_ours_fails"],
        },
        "test_resnet": {"test_both_fail": both.format(1), "test_ours_fails": "passed"},
    }
    assert found["outcomes"]["wsms_test_resnet"]["test_ours_fails"].startswith("failed: AssertionError: it is ours")
    assert found["timm_of_the_tests"] == "9.9"
    tally = found["tally"]
    assert (tally["models"], tally["tests"]) == (3, {"passed": 2, "failed": 4, "skipped": 1})
    assert tally["where_ours_failed_the_backbone"] == {"failed": 3, "passed": 1}
    assert tally["skips"] == {"skipped: Skipped: too large": 1}
    assert {"name": "wsms_test_resnet", "test": "test_ours_fails"}.items() <= found["failures"][-1].items()


def test_goes_on_where_it_stopped(run, tmp_path):
    assert run("--tests", "test_ours*")["tally"]["tests"] == {"failed": 1, "skipped": 1}
    found = run("--tests", "test_b*")
    assert found["tally"]["tests"] == {"passed": 2, "failed": 4, "skipped": 1}
    found["outcomes"]["wsms_test_resnet"] |= {"test_build": "passed before", "test_both_fail": "failed before"}
    (tmp_path / "suite.json").write_text(json.dumps(found))
    assert run("--minutes", "0", "--retry")["outcomes"] == found["outcomes"]
    ours = run("--retry")["outcomes"]["wsms_test_resnet"]
    assert ours["test_build"] == "passed before" and ours["test_both_fail"].startswith("failed: ValueError")
