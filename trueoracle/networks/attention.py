"""Multi-head self-attention whose heads can be removed one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Attention"]


class Attention(nn.Module):
    """Self-attention over tokens ``[N, L, dim]`` (Vaswani et al. 2017, arXiv 1706.03762, 3.2.2).

    Tensors are named and laid out as in ``torch.nn.MultiheadAttention``, so that its weights can be
    loaded: the rows of ``in_proj_weight`` are the queries of all heads, then the keys, then the
    values. Unlike there, ``heads · head_dim`` need not equal ``dim``: with fewer heads the product
    is just smaller.
    """

    def __init__(self, dim: int, heads: int, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.heads = heads
        self.head_dim = head_dim or dim // heads
        inner = self.heads * self.head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner))
        self.out_proj = nn.Linear(inner, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend from every token to every token of the same image."""
        projected = functional.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        queries, keys, values = projected.unflatten(2, (3, self.heads, self.head_dim)).unbind(2)
        attended = functional.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"heads={self.heads}, head_dim={self.head_dim}"
