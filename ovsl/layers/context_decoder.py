"""Text embeddings that look at the image: DenseCLIP's post-model prompting."""

from __future__ import annotations

from torch import Tensor, nn

from ovsl.layers.attention import attend


class _Attention(nn.Module):
    """Attention with a bias in the output projection only, and dropout after it."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        mixed = attend(self.q_proj(query), self.k_proj(memory), self.v_proj(memory), self.num_heads)
        return self.dropout(self.proj(mixed))


class _Layer(nn.Module):
    """Pre-norm self-attention, cross-attention and perceptron."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = _Attention(width, num_heads, dropout)
        self.cross_attn = _Attention(width, num_heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor, memory: Tensor) -> Tensor:
        normed = self.norm1(text)
        text = text + self.self_attn(normed, normed)
        text = text + self.cross_attn(self.norm2(text), memory)
        return text + self.dropout(self.mlp(self.norm3(text)))


class ContextDecoder(nn.Module):
    """Transformer decoder with class texts as queries and the image's cells as memory (DenseCLIP, section 3.3).

    Args:
        channels: Size of the joint image-text space.
        width: Width of the decoder.
        num_heads: Attention heads.
        num_layers: Layers.
        dropout: Of attention outputs and perceptrons.
    """

    def __init__(
        self, channels: int, width: int = 256, num_heads: int = 4, num_layers: int = 3, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.memory_proj = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.LayerNorm(width))
        self.text_proj = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.decoder = nn.ModuleList(_Layer(width, num_heads, dropout) for _ in range(num_layers))
        self.out_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """Texts `(B, K, C)` and image tokens `(B, N, C)` -> what the image adds to the texts, `(B, K, C)`."""
        memory = self.memory_proj(visual)
        text = self.text_proj(text)
        for layer in self.decoder:
            text = layer(text, memory)
        return self.out_proj(text)
