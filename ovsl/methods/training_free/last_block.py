"""What the last block of a CLIP vision transformer does: the one place where the methods of the line differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from ovsl.clip.blocks import run_block
from ovsl.clip.image_tower import Grid, ViTTower
from ovsl.errors import InputError
from ovsl.layers import attend

Term = tuple[Tensor, Tensor, Tensor | None]
Compared = Literal["query-key", "query-query", "key-key", "neighbours", "identity"]
"""What the logits of a softmax compare; `neighbours` compares nothing and looks at distances alone."""


class LastBlock(nn.Module, ABC):
    """The end of the image tower: what replaces its last block, and what is added around it.

    The blocks before it run unaltered.

    Attributes:
        needs_regions: Whether it goes by region maps.
    """

    needs_regions: bool = False

    @abstractmethod
    def forward(self, tower: ViTTower, images: Tensor, colors: Tensor, regions: Tensor | None = None) -> Tensor:
        """Return dense features in the joint image-text space.

        Args:
            tower: CLIP's image tower.
            images: Normalised and padded `(B, 3, H, W)`.
            colors: The same, not normalised: 0..1, beyond where padding is.
            regions: Region maps, integers `(B, H, W)`.

        Returns:
            `(B, D, h, w)`, not normalised; the grid is the one that the attention is defined on.
        """


def block_inputs(tower: ViTTower, images: Tensor) -> tuple[list[Tensor], Grid]:
    """Run all blocks but the last.

    Args:
        tower: The tower.
        images: Normalised `(B, 3, H, W)`.

    Returns:
        Tokens `(B, 1 + h*w, width)` that enter each block, the last included; and the grid `(h, w)`.
    """
    tokens, grid = tower.stem(images, "offset")
    inputs = [tokens]
    for block in tower.blocks[:-1]:
        inputs.append(run_block(block, inputs[-1]))
    return inputs, grid


def projections(block: ResidualAttentionBlock, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of a block, each `(B, N, width)`, heads side by side."""
    attention = block.attn
    projected = functional.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.chunk(3, dim=-1)
    return query, key, value


def add_residuals(block: ResidualAttentionBlock, tokens: Tensor, attended: Tensor) -> Tensor:
    """Finish a block: its input added to what the attention gave, then its MLP."""
    tokens = tokens + block.ls_1(attended)
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


class TokenAttention(LastBlock):
    """Tokens of the last block compared with themselves: SCLIP, NACLIP, ClearCLIP.

    Wang et al.: *SCLIP*, ECCV 2024, arXiv 2312.01597 (section 3.2): `query-query` and `key-key` added, residual and MLP
    kept. Hajimiri et al.: *NACLIP*, WACV 2025, arXiv 2404.08181 (section 3): `key-key` with a Gaussian, both dropped.
    Lan et al.: *ClearCLIP*, ECCV 2024, arXiv 2407.12442 (section 3): `query-query`, both dropped. `query-key` is CLIP's
    own attention, `identity` MaskCLIP's.

    Args:
        compared: One softmax for each entry; they are added, so that with two the weights of a token add up to 2.
        neighbourhood: Standard deviation in patches of a Gaussian of the distance, 1 at its peak, that is added to the
            logits of patches (not of the class token); None for none.
        keep_residual: Whether the residual and the MLP of the block stay.
    """

    def __init__(
        self,
        compared: Sequence[Compared] = ("query-query", "key-key"),
        neighbourhood: float | None = None,
        keep_residual: bool = True,
    ) -> None:
        super().__init__()
        if "neighbours" in compared and neighbourhood is None:
            raise InputError("Attention by neighbours alone needs `neighbourhood`, such as 5.0.")
        self.compared = tuple(compared)
        self.neighbourhood = neighbourhood
        self.keep_residual = keep_residual

    def forward(self, tower: ViTTower, images: Tensor, colors: Tensor, regions: Tensor | None = None) -> Tensor:
        """See `LastBlock.forward`; the grid is CLIP's."""
        inputs, grid = block_inputs(tower, images)
        return tower.project_patches(self.run(tower.blocks[-1], inputs[-1], grid), grid)

    def run(self, block: ResidualAttentionBlock, tokens: Tensor, grid: Grid) -> Tensor:
        """Run the block in its new form, `(B, 1 + h*w, width)` in and out."""
        query, key, value = projections(block, tokens)
        num_heads = block.attn.num_heads
        terms = self.terms(query, key, num_heads, grid)
        mixed = torch.stack([attend(left, right, value, num_heads, bias) for left, right, bias in terms]).sum(0)
        attended = block.attn.out_proj(mixed)
        return add_residuals(block, tokens, attended) if self.keep_residual else attended

    def terms(self, query: Tensor, key: Tensor, num_heads: int, grid: Grid) -> list[Term]:
        """Return for each softmax what stands left and right, and what is added to the scaled logits.

        Args:
            query: `(B, 1 + h*w, width)`.
            key: Likewise.
            num_heads: Number of heads.
            grid: `(h, w)`.
        """
        near = None if self.neighbourhood is None else gaussian_bias(grid, self.neighbourhood, query)
        nothing = torch.zeros_like(query)
        terms: list[Term] = []
        for name in self.compared:
            match name:
                case "query-key":
                    terms.append((query, key, near))
                case "query-query":
                    terms.append((query, query, near))
                case "key-key":
                    terms.append((key, key, near))
                case "neighbours":
                    assert near is not None
                    terms.append((nothing, nothing, near * _strength(query, key, num_heads)))
                case "identity":
                    itself = torch.eye(query.shape[1], dtype=torch.bool, device=query.device)
                    terms.append((nothing, nothing, itself))
        return terms


def _strength(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """Return the mean product of lengths over heads and pairs of tokens, scaled as logits are: `(B, 1, 1, 1)`."""
    lengths = [tokens.unflatten(2, (num_heads, -1)).norm(dim=-1).mean(1) for tokens in (query, key)]
    return (lengths[0] * lengths[1]).mean(1).view(-1, 1, 1, 1) * (num_heads / query.shape[2]) ** 0.5


def gaussian_bias(grid: Grid, deviation: float, like: Tensor) -> Tensor:
    """Return a Gaussian of the distance between patches, 1 at its peak; zeros in row and column of the class token.

    Args:
        grid: `(h, w)`.
        deviation: Standard deviation in patches.
        like: Gives device and type.

    Returns:
        `(1 + h*w, 1 + h*w)`.
    """
    rows, columns = (torch.arange(side, device=like.device, dtype=like.dtype) for side in grid)
    places = torch.cartesian_prod(rows, columns)
    squares = (places[:, None] - places[None]).square().sum(-1)
    return functional.pad((-squares / (2 * deviation**2)).exp(), (1, 0, 1, 0))
