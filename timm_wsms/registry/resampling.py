"""Position tables of saved weights, for a network that is built for another image size (`img_size`)."""

from collections.abc import Callable, Mapping

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn

from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.position_tables import Grids, find_grids
from timm_wsms.network.ties import duplicate_keys, find_owner


def resample_tables(
    network: MultiStageNet, weights: Mapping[str, torch.Tensor], build_original: Callable[[], MultiStageNet]
) -> dict[str, torch.Tensor]:
    """The weights, with the position tables whose grids timm's modules state resampled, as in timm's plain models.

    Args:
        network: For the new image size.
        weights: Of a network for another one.
        build_original: Builds that one; called on the meta device.

    Returns:
        The weights by the new network's keys. All that is no such table stays as it is, and may not fit.
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
        name = key.rpartition(".")[2]
        grids = find_grids(name, _holders(original, source), _holders(network, key))
        found[key] = weights[source] if grids is None else _resample(name, weights[source], tensor.shape, grids)
    return found


def _resample(name: str, table: torch.Tensor, shape: torch.Size, grids: Grids) -> torch.Tensor:
    """As timm does it for its own models; what it has no function for stays as it is."""
    old, new = grids
    if old == new or table.ndim != len(shape):
        return table
    if name == "pos_embed" and table.ndim == 3:
        prefix = table.shape[1] - old[0] * old[1]
        return resample_abs_pos_embed(table, [*new], [*old], num_prefix_tokens=prefix)
    if name == "relative_position_bias_table":  # its grids are of all offsets
        before, after = (((height + 1) // 2, (width + 1) // 2) for height, width in grids)
        return resize_rel_pos_bias_table(table, after, shape, before)
    return table


def _holders(network: MultiStageNet, key: str) -> tuple[nn.Module, nn.Module]:
    """The backbone that a tensor belongs to, and the module in it that holds the tensor."""
    before, _, inside = key.rpartition("backbone.")
    backbone = network.get_submodule(f"{before}backbone") if inside != key else network
    module = find_owner(network, key)
    assert module is not None
    return backbone, module
