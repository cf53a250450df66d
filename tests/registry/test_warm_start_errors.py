"""What a user reads where weights do not load, or start fresh: one line that names the remedy."""

import logging
from urllib.error import URLError

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from tests.helpers.checkpoints import Evil, checkpoint_of, images, run, start, trained, write
from tests.helpers.tiers import slow_except
from timm_wsms import UserError
from timm_wsms.hub import download as hub_download
from timm_wsms.registry import weights


def refused(name="wsms_test_resnet", overlay=None, **kwargs):
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        start(name, overlay, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


# ---- files


def test_missing_file(tmp_path):
    for name in ("no.safetensors", "no.pth"):
        assert refused(overlay={"file": str(tmp_path / name)}) == (
            f"there is no checkpoint file {tmp_path / name}; check the path"
        )


def test_broken_safetensors(tmp_path):
    overlay = checkpoint_of(trained("test_resnet"), tmp_path)
    whole = (tmp_path / "weights.safetensors").read_bytes()
    for content in (b"", b"not safetensors at all", whole[:-100], whole[:50]):
        (tmp_path / "weights.safetensors").write_bytes(content)
        message = refused(overlay=overlay)
        assert "weights.safetensors is not a complete safetensors file" in message
        assert "download or copy it again" in message


def test_broken_pth(tmp_path):
    overlay = write(trained("test_resnet").state_dict(), tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        (tmp_path / "weights.pth").write_bytes(content)
        message = refused(overlay=overlay)
        assert f"{tmp_path / 'weights.pth'} does not load" in message
        assert "give a checkpoint of test_resnet, or one of wsms_test_resnet" in message


@pytest.mark.slow
def test_weights_that_a_hybrid_loads_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    overlay = checkpoint_of(trained("vit_small_resnet26d_224"), tmp_path)
    message = refused("wsms_vit_small_resnet26d_224", overlay)
    assert (
        f"what vit_small_resnet26d_224 loads before {tmp_path / 'weights.safetensors'} is not in the cache" in message
    )
    assert message.endswith("or give checkpoint_path=..., not pretrained=True")


def test_folder_with_pickled_weights_only(tmp_path):
    model = timm.create_model("wsms_test_resnet")
    timm.models.save_for_hf(model, tmp_path, safe_serialization="both")
    expected = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images())
    torch.save(timm.create_model("wsms_test_resnet").state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images()), expected)
    (tmp_path / "model.safetensors").unlink()
    message = refused(f"local-dir:{tmp_path}")
    assert f"{tmp_path} has no model.safetensors, and pickled weights are not read" in message
    timm.create_model(f"local-dir:{tmp_path}")  # without weights it can be built


def test_of_a_hub_folder_only_safetensors_are_asked_for(tmp_path, monkeypatch):
    asked = []

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        if filename == "config.json":
            return str(tmp_path / filename)
        raise LocalEntryNotFoundError("offline")

    timm.models.save_for_hf(timm.create_model("wsms_test_resnet"), tmp_path, safe_serialization="both")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    monkeypatch.setattr(hub_download, "hf_hub_download", download)
    assert "someone/model of the Hugging Face Hub is not in the cache" in refused("hf-hub:someone/model")
    assert asked == [("someone/model", "config.json"), ("someone/model", "model.safetensors")]


def test_pickle_that_would_run_code_does_not(tmp_path):
    state = {**trained("test_resnet").state_dict(), "evil": Evil()}
    message = refused(overlay=write(state, tmp_path / "weights.pth"))
    assert "weights.pth does not load" in message and "weights_only" in message
    assert not Evil.ran


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "test_vit", "densenet121"])
def test_checkpoint_of_another_architecture(name, tmp_path):
    overlay = checkpoint_of(trained("test_resnet"), tmp_path)
    message = refused(f"wsms_{name}", overlay)
    assert message.startswith(f"{overlay['file']} does not load (")
    assert message.endswith(f"give a checkpoint of {name}, or one of wsms_{name}")


def test_network_of_another_architecture_or_shape(tmp_path):
    overlay = checkpoint_of(timm.create_model("wsms_test_resnet"), tmp_path)
    for name, kwargs in (("resnet18", {}), ("test_resnet", {"stages": 2}), ("test_resnet", {"residual": False})):
        assert "weights.safetensors does not load" in refused(f"wsms_{name}", overlay, **kwargs)


def test_a_state_dict_in_memory_that_does_not_fit():
    message = refused(overlay={"state_dict": {"conv1.weight": torch.zeros(1)}, "file": None, "hf_hub_id": None})
    assert message.startswith("the given state dict does not load (")


def test_errors_that_have_nothing_to_do_with_weights_pass(tmp_path):
    overlay = checkpoint_of(trained("test_resnet"), tmp_path)
    with pytest.raises(TypeError, match="no_such_argument"):
        start("wsms_test_resnet", overlay, no_such_argument=1)
    assert "stages must be 1 to 5" in refused(overlay=overlay, stages=9)


# ---- the Hub


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "resnet50", "vit_tiny_patch16_224.augreg_in21k"])
def test_without_network_and_not_in_the_cache(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        timm.create_model(f"wsms_{name}", pretrained=True, cache_dir=tmp_path)
    tag = timm.get_pretrained_cfg(name).hf_hub_id
    assert str(caught.value) == (
        f"{tag} of the Hugging Face Hub is not in the cache and cannot be reached; connect once (without "
        "HF_HUB_OFFLINE), or give pretrained_cfg_overlay=dict(file=...)"
    )


def test_from_the_cache_without_network(tmp_path, monkeypatch):
    """The folders that the Hub's client keeps, written by hand."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    backbone = trained("test_resnet")
    save_file(backbone.state_dict(), repo / "snapshots" / ("0" * 40) / "model.safetensors")
    for name in ("wsms_test_resnet.r160_in1k", "wsms_test_resnet"):
        model = timm.create_model(name, pretrained=True, cache_dir=tmp_path)
        assert torch.equal(run(model, False), run(backbone, False))


def test_a_url_that_cannot_be_reached(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(weights, "load_state_dict_from_url", unreachable)
    message = refused(overlay={"url": "https://example.org/weights.pth", "hf_hub_id": None})
    assert message.startswith("https://example.org/weights.pth is not in the cache and cannot be reached; connect once")


def test_no_weights_anywhere():
    with pytest.raises(UserError) as caught:
        timm.create_model("wsms_resnet20_cifar", pretrained=True)
    assert str(caught.value) == (
        "there are no weights for wsms_resnet20_cifar; give pretrained_cfg_overlay=dict(file=...), or pretrained=False"
    )


# ---- what starts fresh says so


@pytest.mark.parametrize(
    "name, kwargs",
    slow_except(
        [
            ("resnet20_cifar", {}),
            ("densenet100_k24_cifar", {}),
            ("resnet50_avgpool", {}),
            ("test_resnet", {"residual": False}),
            ("test_vit", {"residual": False}),
            ("test_resnet", {"residual": False, "integration_channels": 24}),
        ],
        *("resnet20_cifar", "test_resnet", "test_vit"),
    ),
)
def test_without_residual_integration_and_classifier_start_fresh_and_say_so(name, kwargs, tmp_path, caplog):
    backbone = trained(name)
    overlay = checkpoint_of(backbone, tmp_path)
    caplog.set_level(logging.WARNING)
    model = start(f"wsms_{name}", overlay, **kwargs)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("timm_wsms")] == [
        f"wsms_{name} has no residual, so the integration layer and the classifier must be trained before use: "
        "so far random"
    ]
    classifier = model.get_classifier().weight
    own = backbone.get_classifier().weight
    assert classifier.shape != own.shape or not torch.equal(classifier, own)
    assert model.integration.gamma is None and (model.integration.norm.weight == 1).all()
    head = (model.get_classifier(name_only=True).removeprefix("backbone."), "fc.", "linear.")
    state = model.state_dict()
    for key, tensor in backbone.state_dict().items():
        if not key.startswith(head):
            assert torch.equal(state[f"backbone.{key}"], tensor), key


@pytest.mark.parametrize("kwargs", [{}, {"stages": 1, "residual": False}])
def test_nothing_is_said_where_the_logits_are_the_backbones(kwargs, tmp_path, caplog):
    start("wsms_test_resnet", checkpoint_of(trained("test_resnet"), tmp_path), **kwargs)
    timm.create_model("wsms_resnet20_cifar")  # nothing to start from
    assert not [record for record in caplog.records if record.name.startswith("timm_wsms")]


@pytest.mark.parametrize(
    "kwargs, what", [({"num_classes": 0}, "the integration layer"), ({"integration": "none"}, "the classifier")]
)
def test_the_line_names_only_what_there_is(kwargs, what, tmp_path, caplog):
    overlay = checkpoint_of(trained("test_resnet"), tmp_path)
    start("wsms_test_resnet", overlay, residual=False, **kwargs)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("timm_wsms")] == [
        f"wsms_test_resnet has no residual, so {what} must be trained before use: so far random"
    ]


def test_a_network_of_ours_without_residual_loads_as_it_is(tmp_path, caplog):
    source = timm.create_model("wsms_resnet20_cifar")
    model = start("wsms_resnet20_cifar", checkpoint_of(source, tmp_path))
    x = images(side=32)
    assert torch.equal(run(model, False, x), run(source, False, x))
    assert not [record for record in caplog.records if record.name.startswith("timm_wsms")]


def test_the_papers_network_with_a_residual_starts_from_the_backbones_logits(tmp_path, caplog):
    backbone = trained("resnet20_cifar")
    model = start("wsms_resnet20_cifar", checkpoint_of(backbone, tmp_path), residual=True)
    x = images(side=32)
    assert torch.equal(run(model, False, x), run(backbone, False, x))
    assert not [record for record in caplog.records if record.name.startswith("timm_wsms")]
