"""Shared weights under torch.distributed: checkpoints through DDP and compile, and FSDP2. One gloo process."""

import pytest
import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.networks import EXACT, build, check_same, each_form, images, logits
from timm_wsms import UserError


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    store = f"file://{tmp_path_factory.mktemp('store')}/store"
    init_process_group("gloo", store, world_size=1, rank=0)
    yield
    destroy_process_group()


WRAPPERS = {
    "none": lambda model: model,
    "DDP": DistributedDataParallel,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "DDP of compile": lambda model: DistributedDataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@each_form
def test_set_model_state_dict_loads_strictly(form, wrapper):
    source, target = build(form), build(form, seed=1)
    state = get_model_state_dict(WRAPPERS[wrapper](source))
    check_same(state, source.state_dict())  # each tensor once, without a wrapper's prefix
    found = set_model_state_dict(WRAPPERS[wrapper](target), dict(state))
    assert not found.missing_keys and not found.unexpected_keys
    torch.testing.assert_close(logits(target), logits(source), **EXACT)


def test_fsdp_of_the_whole_network():
    model, expected = build("mean"), logits(build("mean"))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    torch.testing.assert_close(logits(model), expected, **EXACT)
    model(images()).square().mean().backward()


def test_fsdp_of_a_block_is_refused():
    model, mesh = build("mean"), init_device_mesh("cpu", (1,))
    fully_shard(model.backbone.layer1[0], mesh=mesh)
    for run in (logits, lambda model: fully_shard(model, mesh=mesh)):
        with pytest.raises(UserError, match=r"FSDP shards backbone\.layer1\.0\.conv1\.weight .* whole network only"):
            run(model)
