"""Attention within regions that are given: CorrCLIP."""

from __future__ import annotations

from typing import NamedTuple

import torch
from open_clip.transformer import ResidualAttentionBlock
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

from ovsl.clip import ViTTower
from ovsl.errors import InputError
from ovsl.inference.regions import resize_regions
from ovsl.layers import attend
from ovsl.methods.training_free.last_block import LastBlock, add_residuals, block_inputs, projections
from ovsl.methods.training_free.proxy import ProxyModel, masked_attention, patch_values, unit_patches

MERGED = 10000
"""Number of the first merged region: above those that region maps use, so that both fit into one map."""

SPATIAL_LAYERS = {12: 5, 24: 12, 32: 28}
"""Blocks that the spatial branch averages, by the depth of the tower; four fewer than there are for another depth."""


class Branches(NamedTuple):
    """The three branches before the final norm, each `(B, h'*w', width)`."""

    main: Tensor
    spatial: Tensor
    semantic: Tensor


class RegionCorrelation(LastBlock):
    """Patches see each other within regions, as far as another model finds them alike.

    Zhang et al.: *CorrCLIP*, ICCV 2025, arXiv 2411.10086, in its first version. Regions that look alike are merged and
    bound the attention; a spatial branch adds earlier blocks, a semantic one a token for each region.

    Args:
        proxy: The other model; queries plus keys of DINO in the paper.
        temperature: Factor of the similarities before the softmax (tau).
        merge_distance: Regions whose distance is not larger are merged, through others too (epsilon of DBSCAN).
        spatial_weight: Weight of the spatial branch (alpha).
        semantic_weight: Weight of the semantic branch (beta).
    """

    needs_regions = True

    def __init__(
        self,
        proxy: ProxyModel,
        temperature: float = 4.0,
        merge_distance: float = 0.2,
        spatial_weight: float = 1.0,
        semantic_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.proxy = proxy
        self.temperature = temperature
        self.merge_distance = merge_distance
        self.spatial_weight = spatial_weight
        self.semantic_weight = semantic_weight

    def forward(self, tower: ViTTower, images: Tensor, colors: Tensor, regions: Tensor | None = None) -> Tensor:
        """See `LastBlock.forward`; the grid is the other model's.

        Raises:
            InputError: There are no region maps, or the tower has too few blocks.
        """
        if regions is None:
            raise InputError(
                "CorrCLIP needs a map of regions beside every image: set `regions` of the evaluation dataset, "
                "for example to a ovsl.data.RegionFolder."
            )
        features = self.proxy(colors)
        size = (features.shape[2], features.shape[3])
        patches = unit_patches(features)
        merged = self.merge(patches, resize_regions(regions, size))
        main, spatial, semantic = self.branches(tower, images, patches, merged)
        norm = tower.visual.ln_post
        joint = norm(main) + self.spatial_weight * norm(spatial) + self.semantic_weight * norm(semantic)
        return (joint @ tower.visual.proj).transpose(1, 2).unflatten(2, size)

    # Which regions there are is read from the image: no part of a compiled network, which ends here and goes on behind.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def merge(self, features: Tensor, regions: Tensor) -> Tensor:
        """Merge the regions whose mean features are alike, image by image.

        The smallest value of a map stands for what no region covers and stays as it is.

        Args:
            features: Unit vectors `(B, h*w, D)`.
            regions: Integers `(B, h, w)`.

        Returns:
            Integers `(B, h, w)`: merged regions count from `MERGED` on, in the order of their first region.
        """
        return torch.stack([self._merge(*both) for both in zip(features, regions, strict=True)])

    def _merge(self, features: Tensor, regions: Tensor) -> Tensor:
        values, numbers = regions.unique(return_inverse=True)
        if len(values) <= 2:
            return regions
        sums = features.new_zeros(len(values), features.shape[1]).index_add_(0, numbers.flatten(), features)
        means = functional.normalize(sums, dim=1)[1:]
        similarity = means @ means.T
        linked = similarity.max() - similarity <= self.merge_distance
        _, clusters = connected_components(linked.cpu().numpy(), directed=False)
        merged = torch.from_numpy(clusters).to(regions) + MERGED
        return torch.cat([values[:1], merged])[numbers]

    def attention(self, features: Tensor, merged: Tensor) -> Tensor:
        """Return the attention of the main and the spatial branch.

        Patches of one region see each other; what no region covers sees, and is seen by, what is more alike than the
        mean.

        Args:
            features: Unit vectors `(B, h*w, D)`.
            merged: `(B, h, w)`.

        Returns:
            `(B, h*w, h*w)`.
        """
        similarity = features @ features.transpose(1, 2)
        flat = merged.flatten(1)
        bare = flat == flat.amin(1, keepdim=True)
        either = bare[:, :, None] | bare[:, None]
        alike = similarity > similarity.mean(dim=(1, 2), keepdim=True)
        allowed = torch.where(either, alike, flat[:, :, None] == flat[:, None])
        return masked_attention(self.temperature * similarity, allowed)

    def branches(self, tower: ViTTower, images: Tensor, features: Tensor, merged: Tensor) -> Branches:
        """Run the tower and its three branches.

        Args:
            tower: The tower.
            images: Normalised `(B, 3, H, W)`.
            features: Unit vectors of the other model `(B, h'*w', D)`.
            merged: Merged regions on its grid `(B, h', w')`.
        """
        inputs, grid = block_inputs(tower, images)
        last = tower.blocks[-1]
        size = (merged.shape[1], merged.shape[2])
        attention = self.attention(features, merged)
        main, spatial = (
            last.attn.out_proj(attention @ patch_values(last, tokens, grid, size))
            for tokens in (inputs[-1], self.spatial_tokens(inputs))
        )
        numbers = region_numbers(resize_regions(merged, grid))
        tokens = self.region_tokens(tower, inputs, numbers)
        of_patches = resize_regions(numbers, size).flatten(1)
        semantic = tokens.gather(1, of_patches[..., None].expand(-1, -1, tokens.shape[2]))
        return Branches(main, spatial, semantic)

    def spatial_tokens(self, inputs: list[Tensor]) -> Tensor:
        """Return the mean output of the blocks before the last but one, `(B, 1 + h*w, width)`.

        Raises:
            InputError: There are fewer than five blocks, so that none is left to average.
        """
        depth = len(inputs)
        count = SPATIAL_LAYERS.get(depth, depth - 4)
        if count < 1:
            raise InputError(f"CorrCLIP averages earlier blocks and needs at least 5; this CLIP has {depth}.")
        return torch.stack(inputs[depth - 1 - count : depth - 1]).mean(0)

    def region_tokens(self, tower: ViTTower, inputs: list[Tensor], numbers: Tensor) -> Tensor:
        """Run a copy of the class token for every region through all blocks.

        A copy sees the class token and the patches of its region. Nothing sees the copies, not even themselves, so that
        they go beside the ordinary tokens and leave those as they are.

        Args:
            tower: The tower.
            inputs: Ordinary tokens that enter each block, `(B, 1 + h*w, width)`.
            numbers: Number of the region of each patch, 0.. in each image, `(B, h, w)`.

        Returns:
            `(B, R, width)`; R is the largest number of regions in an image, tokens beyond an image's own mean nothing.
        """
        own = numbers.flatten(1)[:, None] == torch.arange(int(numbers.max()) + 1, device=numbers.device)[:, None]
        seen = functional.pad(own, (1, 0), value=True)[:, None]
        copies = inputs[0][:, :1].expand(-1, own.shape[1], -1)
        for block, tokens in zip(tower.blocks, inputs, strict=True):
            copies = _look_at(block, copies, tokens, seen)
        return copies


@torch.compiler.disable  # type: ignore[untyped-decorator]
def region_numbers(regions: Tensor) -> Tensor:
    """Rank the values of every map from 0 in ascending order: `(B, h, w)` -> int64 `(B, h, w)`."""
    return torch.stack([one.unique(return_inverse=True)[1] for one in regions])


def _look_at(block: ResidualAttentionBlock, copies: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
    """Run a block for tokens that see others and not themselves."""
    query = projections(block, copies)[0]
    _, key, value = projections(block, tokens)
    attended = block.attn.out_proj(attend(query, key, value, block.attn.num_heads, seen))
    return add_residuals(block, copies, attended)
