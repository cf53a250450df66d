"""Files: what is written is what is read, by values."""

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from tests.helpers.networks import EXACT, build, check_same, each_form, images, logits
from timm_wsms.training.checkpoint_folder import save_model_folder


@each_form
def test_safetensors_round_trip(form, tmp_path):
    source, target = build(form), build(form, seed=1)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    check_same(stored, source.state_dict())
    target.load_state_dict(stored)
    torch.testing.assert_close(logits(target), logits(source), **EXACT)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_checkpoint_folder_round_trip(memory_format, tmp_path):
    source = build().to(memory_format=memory_format)
    expected = logits(source)
    save_model_folder(source, tmp_path, timm.data.resolve_data_config(model=source), list("abcde"), images())
    check_same(load_file(tmp_path / "model.safetensors"), source.state_dict())
    target = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    check_same(target.state_dict(), source.state_dict())
    torch.testing.assert_close(logits(target), expected, rtol=1e-5, atol=1e-5)


@each_form
def test_accelerator_save_model_then_strict_load(form, tmp_path):
    source, target = build(form), build(form, seed=1)
    Accelerator(cpu=True).save_model(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    target.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(logits(target), logits(source), **EXACT)
    check_same(target.state_dict(), source.state_dict())
