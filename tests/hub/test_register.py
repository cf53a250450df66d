"""A published checkpoint as a pretrained tag, ahead of timm's."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.helpers.publishing import MODEL, REPO, publish
from timm_wsms.errors import UserError
from timm_wsms.files import write_tensors
from timm_wsms.hub import register
from timm_wsms.training.checkpoint_folder import reference_tensors


@pytest.mark.parametrize(
    ("name", "change", "tag", "words"),
    [
        ("wsms_resnet20_cifar10", {}, "CIFAR.10", "a tag consists of small letters, digits and underscores"),
        ("resnet20_cifar10", {}, "cifar10", "resnet20_cifar cannot have tags of its own"),
        ("wsms_resnet20_cifar10", {"stages": 2}, "cifar10", "has arguments other than the defaults of"),
        ("wsms_resnet20_cifar10", {"global_pool": "max"}, "cifar10", "has arguments other than the defaults of"),
    ],
)
def test_what_cannot_be_a_tag(tmp_path, name, change, tag, words):
    folder = Path(shutil.copytree(MODEL.parent / name, tmp_path / "model"))
    model = timm.create_model(f"local-dir:{folder}").eval()
    if change:
        torch.manual_seed(0)
        model = timm.create_model("wsms_resnet20_cifar", num_classes=10, **change).eval()
        recorded = load_file(folder / "test" / "tensors.safetensors")
        write_tensors(folder / "test" / "tensors.safetensors", reference_tensors(model, recorded["input"]))
    with pytest.raises(UserError, match=words):
        register.check_default(model, folder, tag)


AGAIN = """
import warnings
from pathlib import Path
from timm_wsms.hub import published
from timm_wsms.registry import wsms
warnings.simplefilter("ignore")
published.FILE = Path({!r}) if {!r} else Path(published.__file__).with_name("published.json")
wsms._published.cache_clear()
wsms.register("resnet20_cifar")
"""


@pytest.fixture
def listed(client, tmp_path):
    """A list of published checkpoints, empty, which the client reads instead of the package's."""
    path = tmp_path / "published.json"
    path.write_text("[]")
    client.python(AGAIN.format(str(path), str(path)))
    yield path
    client.python(AGAIN.format("", ""))


@pytest.mark.slow
def test_a_published_tag(hub, client, listed):
    code, shown, told = publish(client, "--register")
    assert code == 0, told
    assert "registered as wsms_resnet20_cifar.cifar10" in shown
    (entry,) = json.loads(listed.read_text())
    assert (entry["repo"], entry["revision"], entry["accuracy"]) == (REPO, hub.repos[REPO].branch, 86.32)
    assert publish(client, "--register", "other")[0] == 0 and publish(client, "--register", "cifar10")[0] == 0
    assert [each["tag"] for each in json.loads(listed.read_text())] == ["cifar10", "other"]

    assert client.python(AGAIN.format(str(listed), str(listed))) is None  # as at the next import
    weights = load_file(MODEL / "model.safetensors")
    for name in ("wsms_resnet20_cifar.cifar10", "wsms_resnet20_cifar"):
        found = client.python(
            f"""
model = timm.create_model({name!r}, pretrained=True)
cfg = model.pretrained_cfg
result = [model.num_classes, list(cfg["mean"]), cfg["tag"], model.state_dict()["head.fc.weight"].tolist()]
"""
        )
        assert found[:3] == [10, [0.4914, 0.4822, 0.4465], "cifar10"]
        assert torch.equal(torch.tensor(found[3]), weights["head.fc.weight"])
    assert client.python("result = timm.list_models('wsms_resnet20_cifar', pretrained=True)") == [
        *("wsms_resnet20_cifar", "wsms_resnet20_cifar.cifar10", "wsms_resnet20_cifar.other")
    ]
    assert client.python("result = timm.create_model('wsms_resnet20_cifar').num_classes") == 10
    told = client.python("timm.create_model('ms_resnet20_cifar', pretrained=True)")  # published weights are not its own
    assert told.startswith("UserError: there are no weights for ms_resnet20_cifar")
    told = client.python("timm.create_model('wsms_resnet20_cifar.cifar10', pretrained=True, stages=2)")
    assert told.startswith("UserError: someone/small@") and "does not load" in told

    listed.write_text(listed.read_text().replace(entry["sha256"], "0" * 64))  # not what was registered
    told = client.python("timm.create_model('wsms_resnet20_cifar.cifar10', pretrained=True)")
    assert told.startswith("UserError: model.safetensors of someone/small@") and "is corrupted" in told
