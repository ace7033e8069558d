"""The vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Modules and tensors have the names that torchvision gives them, so that weights can be taken from
there. Shapes are kept only in the tensors and in :class:`Attention`, so that heads, units of the
multi-layer perceptrons and channels of the tokens can be removed.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from trueoracle.networks.attention import Attention
from trueoracle.networks.registry import network

__all__ = ["Encoder", "EncoderBlock", "VisionTransformer", "vit_b_16"]


class EncoderBlock(nn.Module):
    """Attention, then a perceptron of one hidden layer, each after a norm and beside a shortcut.

    The input and the output are tokens ``[N, L, width]``.
    """

    def __init__(self, width: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = Attention(width, heads)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            *(nn.Linear(width, mlp), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(mlp, width), nn.Dropout(dropout)),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.self_attention(self.ln_1(tokens)))
        result: Tensor = tokens + self.mlp(self.ln_2(tokens))
        return result


class Encoder(nn.Module):
    """Blocks over tokens ``[N, L, width]``, whose positions are given by a learnt embedding."""

    def __init__(
        self, tokens: int, layers: int, width: int, heads: int, mlp: int, dropout: float
    ) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, width).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            OrderedDict(
                (f"encoder_layer_{i}", EncoderBlock(width, heads, mlp, dropout))
                for i in range(layers)
            )
        )
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.ln(self.layers(self.dropout(tokens + self.pos_embedding)))
        return result


class VisionTransformer(nn.Module):
    """Takes the patches of an image as tokens, and one more token from which it reads the class.

    The last layer starts at zero, as published, so an untrained network outputs zeros.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        patch: int,
        layers: int,
        heads: int,
        width: int,
        mlp: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, breadth = input_shape
        tokens = (height // patch) * (breadth // patch) + 1
        self.conv_proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder(tokens, layers, width, heads, mlp, dropout)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, classes)))
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (channels * patch**2)))
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(images.shape[0], -1, -1)
        tokens = self.encoder(torch.cat([first, patches], dim=1))
        logits: Tensor = self.heads(tokens[:, 0])
        return logits


@network("vit-b-16")
def vit_b_16(
    input_shape: tuple[int, ...] = (3, 224, 224),
    classes: int = 1000,
    *,
    patch: int = 16,
    layers: int = 12,
    heads: int = 12,
    width: int = 768,
    mlp: int = 3072,
    dropout: float = 0.0,
) -> nn.Module:
    """ViT-B/16: square patches of ``patch`` pixels per side, ``width`` numbers per token.

    It has ``layers`` blocks of attention with ``heads`` heads and a perceptron of ``mlp`` hidden
    units.
    """
    numbers = {"patch": patch, "layers": layers, "heads": heads, "width": width, "mlp": mlp}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    _, height, breadth = input_shape
    if height % patch or breadth % patch:
        raise ValueError(f"images of {height}x{breadth} do not divide into patches of {patch}")
    return VisionTransformer(input_shape, classes, patch, layers, heads, width, mlp, dropout)
