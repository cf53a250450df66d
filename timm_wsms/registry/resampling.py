"""Position tables of saved weights, for a network that is built for another image size (`img_size`)."""

from collections.abc import Callable, Mapping

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn

from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.position_tables import Grids, find_grids, resample
from timm_wsms.network.ties import duplicate_keys, find_owner


def resample_tables(
    network: MultiStageNet, weights: Mapping[str, torch.Tensor], build_original: Callable[[], MultiStageNet]
) -> dict[str, torch.Tensor]:
    """The weights, with the tables that depend on the image size resampled, stage 1's as in timm's plain models.

    Args:
        network: For the new image size.
        weights: Of a network for another one.
        build_original: Builds that one; called on the meta device.

    Returns:
        The weights by the new network's keys. What is not a tensor of the original one stays as it is.
    """
    own = network.state_dict()
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        original = build_original()
    before, shared = original.state_dict(), dict(duplicate_keys(original))
    found = {key: tensor for key, tensor in weights.items() if key in own or key not in before}
    for key, tensor in own.items():
        source = key if key in before else shared.get(key)  # stages may have shared a table that they no longer do
        if source not in before or source not in weights or weights[source].shape != before[source].shape:
            continue
        table = weights[source]
        if table.shape != tensor.shape and table.ndim == tensor.ndim:
            name = key.rpartition(".")[2]
            grids = find_grids(name, _holders(original, source), _holders(network, key))
            table = _resample(name, table, tensor.shape, grids)
        found[key] = table
    return found


def _resample(name: str, table: torch.Tensor, shape: torch.Size, grids: Grids | None) -> torch.Tensor:
    """As timm does it for its own models; where it has no function for such a table, as for a new stage."""
    if grids is not None and name == "pos_embed":
        old, new = grids
        prefix = table.shape[1] - old[0] * old[1]
        return resample_abs_pos_embed(table, [*new], [*old], num_prefix_tokens=prefix)
    if grids is not None and name == "relative_position_bias_table":
        height, width = grids[1]  # of all offsets
        return resize_rel_pos_bias_table(table, ((height + 1) // 2, (width + 1) // 2), shape)
    return resample(table, shape, grids=grids)


def _holders(network: MultiStageNet, key: str) -> tuple[nn.Module, nn.Module]:
    """The backbone that a tensor belongs to, and the module in it that holds the tensor."""
    before, _, inside = key.rpartition("backbone.")
    backbone = network.get_submodule(f"{before}backbone") if inside != key else network
    module = find_owner(network, key)
    assert module is not None
    return backbone, module
