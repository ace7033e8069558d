"""Attention modules of other packages, in a form from which any number of heads can be cut.

The original modules compute a head's width as the model's width divided by the number of heads, or
are given a constant for every head from outside. Their replacements here have the same parameters
under the same names and compute the same function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MultiheadAttention", "fit_heads", "free_heads"]


class MultiheadAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` whose heads · head width need not equal ``embed_dim``.

    It has no fast path, since torch's fast path reads packed weights of the full size.
    """

    def free(self) -> None:
        """Prepare a module that was of torch's class."""
        self._qkv_same_embed_dim = False  # keeps layers that hold it off their fast path

    def fit(self) -> None:
        """Set the sizes that follow from the weights."""
        packed = self.in_proj_weight
        rows, width = (self.q_proj_weight if packed is None else packed).shape
        self.num_heads = rows // self.head_dim // (1 if packed is None else 3)
        self.embed_dim = self.kdim = self.vdim = width
        if packed is None:
            self.kdim, self.vdim = self.k_proj_weight.shape[1], self.v_proj_weight.shape[1]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the same as ``torch.nn.MultiheadAttention``."""
        is_batched, is_first = query.ndim == 3, self.batch_first
        if not is_batched:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not is_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        q, k, v = self._projected(query, key, value)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([one, bias.expand(len(one), -1, -1)], 1)
                for one, bias in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (functional.pad(one, (0, 0, 0, 1)) for one in (k, v))
        q, k, v = (
            one.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for one in (q, k, v)
        )
        mask = self._mask(q, k.shape[2], key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.transpose(2, 3)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, dropout)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batched else weights[0]
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        result = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not is_batched:
            return result[0], weights
        return (result if is_first else result.transpose(0, 1)), weights

    def _projected(self, *given: Tensor) -> list[Tensor]:
        """Queries, keys and values ``[N, L, heads · width]``."""
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.unflatten(0, (3, -1)).unbind()
        biases = (None,) * 3
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.unflatten(0, (3, -1)).unbind()
        return list(map(functional.linear, given, weights, biases))

    def _mask(
        self, q: Tensor, keys: int, padding: Tensor | None, given: Tensor | None
    ) -> Tensor | None:
        """The mask to add to the scores, ``[N or 1, heads or 1, L or 1, keys]``; None for none."""
        masks = []
        if padding is not None:
            masks.append(_added(padding, q)[:, None, None])
        if given is not None:
            added = _added(given, q)
            masks.append(added if added.ndim == 2 else added.unflatten(0, (len(q), -1)))
        padded = [functional.pad(mask, (0, keys - mask.shape[-1])) for mask in masks]
        return sum(padded[1:], padded[0]) if padded else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add to scores: minus infinity where a boolean mask is true."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


class _Windows:
    """torchvision's ``ShiftedWindowAttention`` (and V2) over images ``[N, H, W, C]``."""

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    head_dim: int

    def free(self) -> None:
        """Prepare a module that was of torchvision's class."""
        self.head_dim = self.qkv.out_features // 3 // self.num_heads

    def fit(self) -> None:
        """Set the sizes that follow from the weights."""
        self.num_heads = self.qkv.weight.shape[0] // 3 // self.head_dim

    def forward(self: Any, x: Tensor) -> Tensor:
        """Compute the same as torchvision's class."""
        height, width = x.shape[1:3]
        tall, wide = self.window_size
        x = functional.pad(x, (0, 0, 0, -width % wide, 0, -height % tall))
        padded = x.shape[1:3]
        shift = [
            0 if window >= size else by
            for window, size, by in zip(self.window_size, padded, self.shift_size, strict=True)
        ]
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        x = x.unflatten(2, (-1, wide)).unflatten(1, (-1, tall))  # [N, rows, tall, columns, wide, C]
        rows, columns = x.shape[1], x.shape[3]
        tokens = x.transpose(2, 3).flatten(3, 4).flatten(0, 2)
        mask = self._mask(tokens, (rows, columns), padded, shift) if any(shift) else None
        x = self._attended(tokens, mask)
        x = x.unflatten(0, (-1, rows, columns)).unflatten(3, (tall, wide)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)
        if any(shift):
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def _attended(self: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Attend among the tokens ``[N · windows, L, C]`` of each window."""
        scale = getattr(self, "logit_scale", None)
        bias = self.qkv.bias
        if scale is not None and bias is not None:  # in V2, keys have no bias
            first, _, last = bias.unflatten(0, (3, -1)).unbind()
            bias = torch.stack([first, torch.zeros_like(first), last]).flatten()
        projected = functional.linear(tokens, self.qkv.weight, bias)
        each = projected.unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = (one.transpose(1, 2) for one in each.unbind(2))
        if scale is None:
            scores = (q * self.head_dim**-0.5) @ k.transpose(2, 3)
        else:
            scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT
            scores = scores * scale.clamp(max=math.log(100.0)).exp()
        scores = scores + self.get_relative_position_bias()
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        weights = functional.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        x = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return functional.dropout(x, self.dropout, self.training)

    def _mask(
        self: Any, like: Tensor, windows: Iterable[int], size: Iterable[int], shift: list[int]
    ) -> Tensor:
        """A mask ``[windows, L, L]`` that keeps apart tokens which only the shift put together."""
        parts = []
        for length, window, by in zip(size, self.window_size, shift, strict=True):
            part = torch.zeros(length, device=like.device, dtype=like.dtype)
            if by:
                part[-window:] = 1
                part[-by:] = 2
            parts.append(part)
        rows, columns = windows
        area = (3 * parts[0][:, None] + parts[1]).unflatten(1, (columns, -1))
        area = area.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2).flatten(0, 1)
        apart = area[:, None, :] != area[:, :, None]
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -100.0)


class _Alibi:
    """Attention that is given a bias per head (ALiBi: Press et al. 2021, arXiv 2108.12409).

    The model computes the bias for all heads; ``kept_heads`` are the numbers of the heads that are
    left.
    """

    kept_heads: Tensor

    def free(self: Any) -> None:
        """Prepare a module that was of transformers' class."""
        device = next(self.parameters()).device
        self.register_buffer("kept_heads", torch.arange(self.num_heads, device=device))

    def fit(self: Any) -> None:
        """Set the number of heads to that of the heads kept."""
        self.num_heads = len(self.kept_heads)

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        alibi: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute the same as transformers' class, with the biases of the heads kept."""
        if alibi is not None:
            is_folded = alibi.ndim == 3  # [N · heads, 1, L]
            each = alibi.unflatten(0, (len(hidden_states), -1)) if is_folded else alibi
            if attention_mask is not None and attention_mask.shape[1] == each.shape[1] > 1:
                attention_mask = attention_mask.index_select(1, self.kept_heads)
            each = each.index_select(1, self.kept_heads)
            alibi = each.flatten(0, 1) if is_folded else each
        forward: Any = super().forward  # type: ignore[misc]
        return forward(hidden_states, *args, alibi=alibi, attention_mask=attention_mask, **kwargs)


_FREE: dict[str, type] = {
    "torch.nn.modules.activation.MultiheadAttention": MultiheadAttention,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _Windows,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": _Windows,
    "transformers.models.bloom.modeling_bloom.BloomAttention": _Alibi,
    "transformers.models.falcon.modeling_falcon.FalconAttention": _Alibi,
}
"""The class that replaces an attention class, or that is put before it in a new subclass."""


def free_heads(network: nn.Module, cut: Iterable[str] | None = None) -> None:
    """Make ``network``'s attention modules able to run with fewer heads, where they are not.

    Only modules that contain a parameter or buffer named in ``cut`` are changed; None: all modules.
    """
    names = None if cut is None else list(cut)
    for path, module in network.named_modules():
        kind: Any = type(module)
        free = _FREE.get(f"{kind.__module__}.{kind.__qualname__}")
        if free is None:
            continue
        own = f"{path}." if path else ""
        within = f"{own}kept_heads" if free is _Alibi else own
        if names is None or any(name.startswith(within) for name in names):
            freed = cast(Any, module)
            freed.__class__ = _freed(kind, free)
            freed.free()


def fit_heads(network: nn.Module, path: str) -> None:
    """Set the sizes of the attention module in which the module at ``path`` lies, if it is one."""
    while True:
        module = network.get_submodule(path)
        if isinstance(module, MultiheadAttention | _Windows | _Alibi):
            module.fit()
        if not path:
            return
        path = path.rpartition(".")[0]


@cache
def _freed(kind: type, free: type) -> type:
    if issubclass(free, nn.Module):
        return free
    return type(kind.__name__, (free, kind), {"__module__": __name__})
