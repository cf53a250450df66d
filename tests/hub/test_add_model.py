"""The models kept in the repository: each is sound, its card says what its files do. Which runs may stand together."""

import json
import runpy

import pytest
import yaml

from tests.helpers.paths import ROOT
from timm_wsms.errors import UserError
from timm_wsms.hub import card
from timm_wsms.hub.verify_folder import check_folder

MODELS = sorted((ROOT / "hub" / "models").iterdir())
check_alike = runpy.run_path(str(ROOT / "hub" / "add_model.py"))["check_alike"]


@pytest.mark.parametrize("folder", MODELS, ids=[folder.name for folder in MODELS])
def test_a_kept_model_is_sound(folder):
    check_folder(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == card.render(folder)
    assert json.loads((folder / "results.json").read_text())["data"] == "uoft-cs/cifar10"


def test_runs_that_are_compared_differ_in_network_and_seed_alone(tmp_path):
    common = {"lr": 0.2, "epochs": 8}
    for name, more in {"one": {"model": "wsms_a", "stage_loss": 1.0, "seed": 1}, "other": {"model": "a"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.yaml").write_text(yaml.safe_dump({**common, **more}))
    check_alike(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / "settings.yaml").write_text(yaml.safe_dump({"lr": 0.1, "model": "a"}))
    with pytest.raises(UserError, match="other was trained with another epochs and lr; compare like with like"):
        check_alike(tmp_path / "one", tmp_path / "other")
