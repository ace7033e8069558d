"""Criteria of weights together with the layer's inputs: how much the layer's output changes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.criteria.base import criterion
from trueoracle.criteria.calibration import as_matrices, from_matrices, input_statistics
from trueoracle.criteria.importance import pruned_weights, sum_by_filter
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import Splits
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.candidates import CandidateList

__all__ = ["sparsegpt", "sparsegpt_error", "wanda"]

DAMPING = 0.01
"""The share of its mean that is added to the Hessian's diagonal: SparseGPT's ``percdamp``."""


@criterion(
    "wanda",
    label="Wanda score of the pruned {units}",
    source="Sun et al. 2024 (Wanda, arXiv 2306.11695), section 3",
    basis="as published; of convolutions and filters derived",
    separable=True,
    at_once=True,
    applies_to=("filters", "weights"),
    conditional=True,
)
def wanda(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """|w| times the norm of what it multiplies, summed over the pruned weights. ``[P]``.

    The importance of the weight from input j is |w| ‖X_j‖₂, the norm over all tokens (or rows, or
    places of a kernel) of a fixed 512 of the training examples, padding left out, evaluation mode.
    Large ones are kept. The paper compares within each output row, which is
    ``pruning.scope = "row"`` or an N:M pattern; a convolution is read as the matrix that multiplies
    patches, where the paper has linear layers only. Of filters it is the sum over their own
    weights, which the paper does not have. Not applicable where weights multiply no rows, such as
    an embedding's.
    """
    weights = pruned_weights(dense, candidates)
    norms = _statistics(dense, candidates, data, lambda rows: rows.square().sum(1))
    importance = {}
    for name, weight in weights.items():
        layer = dense.get_submodule(_layer(name))
        scores = as_matrices(layer, weight.detach().double().abs()) * norms[name].sqrt()[:, None]
        importance[name] = from_matrices(layer, scores, weight.shape)
    return candidates.sum_pruned(sum_by_filter(dense, candidates, importance))


@criterion(
    "sparsegpt",
    label="SparseGPT saliency of the pruned {units}",
    source="Frantar & Alistarh 2023 (SparseGPT, arXiv 2301.00774), section 3",
    basis="as published; of convolutions derived",
    separable=True,
    at_once=True,
    applies_to=("weights",),
    conditional=True,
)
def sparsegpt(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """w² / [H⁻¹]_jj summed over the pruned weights. ``[P]``.

    The squared error that is left in the layer's output when this weight alone goes and the others
    of its row are corrected (optimal brain surgeon). H = XXᵀ + λI of what the layer reads, over a
    fixed 512 of the training examples, evaluation mode; λ is 0.01 of the mean of the diagonal,
    which also makes H invertible where there are fewer rows than inputs. An input that is always
    zero has no importance (the released code zeroes its weights first). Large ones are kept. The
    released code has 2/N times this H, which orders nothing otherwise, and the inverse of what is
    left as it goes from column to column: ``sparsegpt-error`` scores masks by that pass.
    """
    weights = pruned_weights(dense, candidates)
    hessians = _statistics(dense, candidates, data, _products)
    importance = {}
    for name, weight in weights.items():
        layer = dense.get_submodule(_layer(name))
        matrices = as_matrices(layer, weight.detach().double())
        inverse = torch.stack([torch.cholesky_inverse(f) for f in _factors(hessians[name], name)])
        saliency = matrices**2 / inverse.diagonal(dim1=1, dim2=2)[:, None]
        saliency = saliency.masked_fill(_dead(hessians[name])[:, None], 0.0)
        importance[name] = from_matrices(layer, saliency, weight.shape)
    return candidates.sum_pruned(sum_by_filter(dense, candidates, importance))


@criterion(
    "sparsegpt-error",
    label="SparseGPT error of the pruned {units}",
    source="Frantar & Alistarh 2023 (SparseGPT, arXiv 2301.00774), algorithm 1",
    basis="as published: of a mask that is given; of convolutions derived",
    separable=True,
    at_once=True,
    applies_to=("weights",),
    conditional=True,
)
def sparsegpt_error(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Squared error of the layers' outputs after SparseGPT's correction, for each mask. ``[P]``.

    Algorithm 1 for a mask that is given: column after column, what a pruned weight would have put
    out is made up for by the weights of later columns, and the errors add up to ‖WX - ŴX‖² (with
    the damped H in the place of XXᵀ), of each layer by itself. H, damping and dead inputs are those
    of ``sparsegpt``. The corrected weights are not kept: a candidate's network has the dense
    network's.
    """
    weights = pruned_weights(dense, candidates)
    hessians = _statistics(dense, candidates, data, _products)
    upper = {
        name: torch.stack(
            [
                torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
                for factor in _factors(hessian, name)
            ]
        )
        for name, hessian in hessians.items()
    }
    masks = getattr(candidates, "kept", None)
    if masks is None:
        raise NotApplicableError("the candidates have no masks")
    scores = np.zeros(len(candidates))
    for index in range(len(candidates)):
        for layer_name, kept in masks(index).items():
            name = f"{layer_name}.weight"
            layer = dense.get_submodule(layer_name)
            weight = weights[name].detach().double()
            dead = _dead(hessians[name])[:, None]
            matrices = as_matrices(layer, weight).masked_fill(dead, 0.0)
            pruned = as_matrices(layer, ~kept.to(weight.device))
            scores[index] += float(_error(matrices, pruned, upper[name]))
    return scores


def _error(weights: Tensor, pruned: Tensor, upper: Tensor) -> Tensor:
    """The error of algorithm 1.

    ``weights`` and ``pruned`` are ``[G, outputs, inputs]``; ``upper`` ``[G, inputs, inputs]`` is
    the upper Cholesky factor of the inverse Hessian.
    """
    left, total = weights.clone(), weights.new_zeros(())
    for column in range(weights.shape[2]):
        error = left[:, :, column] * pruned[:, :, column] / upper[:, column, column, None]
        left[:, :, column:] -= error[:, :, None] * upper[:, column, None, column:]
        total = total + error.square().sum()
    return total


def _statistics(
    dense: nn.Module, candidates: CandidateList, data: Splits, statistic: object
) -> dict[str, Tensor]:
    """A statistic of the inputs that the pruned weights multiply, by the weights' names."""
    names = list(pruned_weights(dense, candidates))
    if odd := [name for name in names if not name.endswith(".weight")]:
        raise NotApplicableError(f"{odd[0]} is no layer's weight")
    split = sample(data.measured_train, data.task)
    found = input_statistics(
        dense,
        [_layer(name) for name in names],
        split,
        data.task,
        statistic,  # type: ignore[arg-type]
    )
    return {name: found[_layer(name)] for name in names}


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def _products(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2) @ rows


def _dead(hessian: Tensor) -> Tensor:
    """Which inputs ``[G, inputs]`` are always zero."""
    return hessian.diagonal(dim1=1, dim2=2) == 0


def _factors(hessian: Tensor, name: str) -> list[Tensor]:
    """The lower Cholesky factors of a damped Hessian ``[G, inputs, inputs]``, group by group."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1, keepdim=True)
    # For an input that is always zero, one is added, so that the Hessian can be inverted.
    added = damping + (diagonal == 0)
    damped = hessian + torch.diag_embed(added)
    factors, info = torch.linalg.cholesky_ex(damped)
    if info.any():
        raise NotApplicableError(
            f"the Hessian of {name} cannot be inverted, though damped: too few calibration "
            "examples, or inputs that are all alike"
        )
    return list(factors)
