"""Private names of timm's: what is relied on, one test for each. A failure says which of them timm has changed."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import DefaultCfg, PretrainedCfg, get_arch_pretrained_cfgs, get_model_args

import timm_wsms
from tests.helpers.paths import ROOT
from timm_wsms import timm_private


def changed(name, holds):
    """Fail with the name, so that the log of a run against timm's main says where to look."""
    if not holds:
        pytest.fail(f"timm changed {name}: see timm_wsms/timm_private.py", pytrace=False)


def test_tags_are_what_the_public_function_copies():
    for name in ("resnet50", "vit_base_patch16_224", "resnet20_cifar", "test_resnet"):
        public = {key.partition(".")[2]: cfg for key, cfg in get_arch_pretrained_cfgs(name).items()}
        found = timm_private.tags(name)
        changed("_registry._model_with_tags or _model_pretrained_cfgs", found == public and [*found] == [*public])
    assert timm_private.tags("no_such_model") == {}


def test_configs_can_be_copied_by_their_dictionary():
    """As registry/wsms.py does, since `dataclasses.replace` is slow."""
    fields = {field.name for field in dataclasses.fields(PretrainedCfg)}
    changed("PretrainedCfg", vars(PretrainedCfg()).keys() == fields and not hasattr(PretrainedCfg, "__post_init__"))
    changed("DefaultCfg", {"tags", "cfgs", "is_pretrained"} == {field.name for field in dataclasses.fields(DefaultCfg)})


def test_feature_getter():
    model = timm.create_model("test_resnet", features_only=True, feature_cls="getter")
    changed("_features.FeatureGetterNet", type(model) is timm_private.FeatureGetterNet and hasattr(model, "model"))
    x = torch.zeros(1, 3, 64, 64)
    expected = model.model.forward_intermediates(x, indices=model.out_indices, intermediates_only=True)
    changed("_features.FeatureGetterNet", all(map(torch.equal, model.eval()(x), expected)))


def test_save_config(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3)
    timm_private.save_config_for_hf(model, str(tmp_path / "own.json"), model_config={"label_names": ["a", "b", "c"]})
    timm.models.save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    own, public = (json.loads((tmp_path / name).read_text()) for name in ("own.json", "config.json"))
    changed("_hub.save_config_for_hf", own == public)


def test_update_model_args():
    model = timm.create_model("test_resnet", num_classes=3)
    timm_private.update_model_args(model, pyramid=[1, 0.5])
    found = get_model_args(model)
    changed("_input.update_model_args", found["pyramid"] == [1, 0.5] and found["num_classes"] == 3)


# ---- nothing else


def private_names(path):
    """Of a file, what it takes from timm that begins with an underscore."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "timm":
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names if alias.name.startswith("timm.") for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("timm.", "registry.")):
            names = [node.attr]
        else:
            continue
        yield from (f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in names if name.startswith("_"))


def test_no_other_file_of_the_package_takes_a_private_name():
    files = [*(ROOT / "timm_wsms").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "train_accelerate.py"]
    found = [name for path in files for name in private_names(path) if path.name != "timm_private.py"]
    assert not [name for name in found if "__" not in name]
    assert len([*private_names(Path(timm_private.__file__))]) >= 5  # the search does find them
    assert len(files) > 100 and timm_wsms.__file__ in map(str, files)
