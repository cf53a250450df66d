"""The maps of all levels: `forward_intermediates`, and `features_only=True` for detection and segmentation."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Format, nchw_to
from torch import nn

from timm_wsms.network.backbone_traits import Layout
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.integration import Integration
from timm_wsms.network.layouts import to_map
from timm_wsms.network.stages import Stage
from timm_wsms.timm_private import FeatureGetterNet
from timm_wsms.utils import take_indices


class FeatureMaps(MultiStageNet):
    """What a WsmsNet does besides classification: it returns the maps of its levels.

    Attributes:
        integrated: Positions of the maps that are integrated for `features_only`.
        integration: The integration layer of the last map; None if there is only one stage.
        feature_pyramid: The integration layers of other levels, by their position; empty but for `features_only`.
        feature_info: timm's list of levels.
        replaces_last_map: Whether the last of these maps has the channels of f1, so the integrated map replaces it.
        map_not_in_features: Whether f1 is not among the features (PiT).
        layout: Layout of the features.
        reduction: Reduction of the last map.
        residual: Whether the integrated map is added.
    """

    integrated: set[int]
    integration: Integration | None
    feature_pyramid: nn.ModuleDict
    feature_info: list[dict[str, Any]]
    replaces_last_map: bool
    map_not_in_features: bool
    layout: Layout
    reduction: int
    residual: bool

    def merged(self, features: Any, x: torch.Tensor) -> Any:
        """Features with the integrated map."""
        raise NotImplementedError

    def shallow_stages(self) -> list[Stage]:
        """Stages 2, 3 …"""
        return [*self.stages.values()]  # type: ignore[list-item]

    def make_feature_pyramid(self, gamma: float) -> nn.ModuleDict:
        """An integration layer for every map that other stages have a counterpart of, except the last one."""
        layers = nn.ModuleDict()
        for position, entry in enumerate(self.feature_info[: -1 if self.replaces_last_map else None]):
            stages = [stage for stage in self.shallow_stages() if position in stage.taps]
            widths = [entry["num_chs"], *(stage.channels[stage.taps[position]] for stage in stages)]
            if stages and position in self.integrated:
                layers[str(position)] = Integration(widths, widths[0], 1, residual=True, gamma=gamma)
        reference = next(self.backbone.parameters())
        return layers.to(reference.device, reference.dtype)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the backbone's levels, as timm's models return them.

        The last one holds the integrated map, if `forward_features` has as many channels. With `feature_pyramid` the
        others hold those of their own resolution; without it they are the backbone's.

        Args:
            x: (B, in_chans, H, W).
            indices: The last n levels if an int, all if None.
            norm: Apply the backbone's last norm to its maps.
            stop_early: Leave out what comes after the deepest of the levels.
            output_fmt: "NCHW", "NHWC" or "NLC".
            intermediates_only: Return only the list of maps.

        Returns:
            The result of `forward_features` and the maps. With `stop_early` but without the last level, the former is
            the output of the last block of the backbone that was run.
        """
        last = len(self.feature_info) - 1
        take, _ = take_indices(last + 1, indices)
        images = self.pyramid(x)
        if self.integration is None or (last not in take and (stop_early or intermediates_only)):
            features, maps = self._backbone_maps(images[0], take, norm, stop_early, intermediates_only)
            self._integrate_levels(maps, self._other_stages(images, self._with_layer(maps)))
        else:
            features, maps = self._backbone_maps(images[0], [*take, last] if self.map_not_in_features else take, norm)
            f1 = maps[last] if self.map_not_in_features else to_map(features, x, self.reduction, self.layout)
            others = self._other_stages(images, self._with_layer(maps) | {last: f1})
            self._integrate_levels(maps, others)
            integrated = self.integration([f1, *others[last]])
            features = self.merged(features, integrated)
            if self.replaces_last_map and last in maps:
                maps[last] = maps[last] + integrated if self.residual else integrated
        result = [nchw_to(maps[position], Format(output_fmt)) for position in sorted({*take})]
        return result if intermediates_only else (features, result)

    def _backbone_maps(
        self, image: torch.Tensor, positions: Sequence[int], norm: bool, stop_early: bool = False, alone: bool = False
    ) -> tuple[Any, dict[int, torch.Tensor]]:
        """The backbone's features (None if only maps are asked for), and its maps by their positions."""
        used = sorted({*positions})
        given = self.backbone.forward_intermediates(
            image, indices=used, norm=norm, stop_early=stop_early, intermediates_only=alone
        )
        features, found = (None, given) if alone else given
        return features, dict(zip(used, found, strict=True))

    def _with_layer(self, maps: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The maps for which there is an integration layer in `feature_pyramid`."""
        return {position: x for position, x in maps.items() if str(position) in self.feature_pyramid}

    def _integrate_levels(self, maps: dict[int, torch.Tensor], others: dict[int, list[torch.Tensor]]) -> None:
        """Add to each map that has a layer in `feature_pyramid` its integration with the other stages' maps."""
        for position, own in self._with_layer(maps).items():
            maps[position] = own + self.feature_pyramid[str(position)]([own, *others[position]])

    def _other_stages(
        self, images: list[torch.Tensor], wanted: dict[int, torch.Tensor]
    ) -> dict[int, list[torch.Tensor]]:
        """For some of stage 1's maps, the other stages' maps of the same resolution."""
        others: dict[int, list[torch.Tensor]] = {position: [] for position in wanted}
        for stage, image in zip(self.shallow_stages(), images[1:], strict=True):
            own = {position: like for position, like in wanted.items() if position in stage.taps}
            for position, x in zip(own, stage.maps(image, own) if own else [], strict=True):
                others[position].append(x)
        return others

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what `forward_intermediates` does not need for some of the levels; returns their positions."""
        self.forget_sharing()
        last = len(self.feature_info) - 1
        take, _ = take_indices(last + 1, indices)
        integrates = last in {*take} & self.integrated and (self.replaces_last_map or not prune_head)
        self.backbone.prune_intermediate_layers(take, prune_norm and not integrates, prune_head)
        if prune_head:
            self.head = None
        if not integrates:
            self.integration = None
        for position in [*self.feature_pyramid]:
            if int(position) not in take:
                del self.feature_pyramid[position]
        needed = {*map(int, self.feature_pyramid), *([last] if integrates else [])}
        for number, stage in zip([*self.stages], self.shallow_stages(), strict=True):
            if needed & {*stage.taps}:
                stage.prune(needed)
            else:
                del self.stages[number]
        self.record_sharing()
        return take


class WsmsFeatures(FeatureGetterNet):
    """The maps of a network's levels, each with the stages' maps of its resolution integrated, or averaged.

    Without `out_indices`, the levels are those that timm returns for the backbone. What only other levels would need is
    removed, so every parameter gets a gradient if every map is used. Where a decoder asks for more maps than it uses
    (segmentation_models.pytorch asks for all, DeepLabV3+ takes two), `integrated_indices` says which are integrated:
    the others are the backbone's, without parameters that DDP would wait for. `fusion="mean"` has no such parameters.
    """

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, as `MultiStageNet.set_grad_checkpointing`."""
        network: Any = self.model
        network.set_grad_checkpointing(enable)
