"""Criteria of how well the pruned network will train."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from trueoracle.criteria.base import criterion
from trueoracle.criteria.gradients import own_and_rest, trainable, weight_gradients
from trueoracle.criteria.importance import kept_of
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import Split, Splits, input_shape
from trueoracle.engines import native
from trueoracle.errors import NotApplicableError
from trueoracle.native.lowering import lower
from trueoracle.native.program import Images, Program
from trueoracle.networks.copying import copied
from trueoracle.pruning.candidates import CandidateList, Candidates
from trueoracle.pruning.groups import by_filter, layer_weights
from trueoracle.tasks.classification import Classification
from trueoracle.training.recipe import Retraining

__all__ = ["gradient_flow", "gradient_norm", "tpp"]

TANGENT_OUTPUTS = 400
"""Most outputs (images × classes) between which the tangent kernel is computed."""

JACOBIAN_BYTES = 512 * 2**20
"""Most bytes that the derivatives of these outputs by all weights may take."""

NATIVE_GROUPS = 8
"""Lane groups of pruned networks, per thread, whose gradients are computed in one call."""


@criterion(
    "tpp",
    label="correlation of the pruned {units} with all {units}",
    source="Wang & Fu 2023 (TPP, arXiv 2207.12534), section 3",
    basis="derived: the paper's penalty in training, as a score",
    separable=True,
    applies_to=("filters",),
    uses_data=False,
)
def tpp(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Trainability lost: how far the pruned filters are from uncorrelated with all. ``[P]``.

    ‖W Wᵀ ⊙ (1 - m mᵀ)‖²: the squares of the Gram matrix of a layer's filters, but for those between
    two kept ones (m = 1). The paper drives it to zero by a penalty before the filters go, so that
    the trainability of the kept ones does not hang on them; here it is a score, low where that
    holds already. The layers of a group are added up. The paper's penalty on the scale and bias of
    batch norm is left out.
    """
    ways = cast(Candidates, candidates)
    scores = np.zeros(len(ways))
    for position, group in enumerate(ways.groups):
        kept = kept_of(ways, position)
        for layer, weight in layer_weights(dense, group).values():
            filters = by_filter(layer, weight.detach().double())
            squares = (filters @ filters.T).square().cpu().numpy()
            # Not computed as the total minus the kept part, which would lose digits.
            pruned = 1 - kept
            scores += ((pruned @ squares) * (pruned + 2 * kept)).sum(1)
    return scores


@criterion(
    "gradient-norm",
    label="minus the squared gradient norm after pruning",
    source="ours; GraSP (arXiv 2002.07376) estimates its change to first order",
    basis="ours",
    separable=True,
)
def gradient_norm(dense: nn.Module, candidates: CandidateList, data: Splits) -> np.ndarray:
    """Minus the squared gradient norm of each pruned network. Scores ``[P]``, nats².

    ‖∂L/∂θ‖² over all weights that train, L the task's loss over a fixed 512 of the training
    images, in evaluation mode. To first order, a step of gradient descent lowers the loss by the
    learning rate times this: the larger it is, the faster the pruned network trains, so that the
    largest is best and the score has a minus. GraSP has the same aim, and scores weights by an
    expansion of this norm before pruning (``grasp``); the norm after pruning is no paper's score.
    """
    few = sample(data.measured_train, data.task)
    example = candidates.prune(dense, 0).eval()
    if candidates.is_uniform and native.refusal(example, data, Retraining()) is None:
        return -_native_squares(dense, candidates, few.take(torch.arange(len(few))))
    squares = []
    for index in range(len(candidates)):
        network = candidates.prune(dense, index)
        gradients = weight_gradients(network, trainable(network), few, data.task)
        squares.append(sum(float(g.double().square().sum()) for g in gradients.values()))
    return -np.array(squares)


@criterion(
    "gradient-flow",
    label="linearised train loss after retraining",
    source="Jacot et al. 2018 (arXiv 1806.07572); Lee et al. 2019 (arXiv 1902.06720), section 2",
    basis="ours",
    separable=True,
    conditional=True,
    uses_recipe=True,
)
def gradient_flow(
    dense: nn.Module, candidates: CandidateList, data: Splits, recipe: Retraining
) -> np.ndarray:
    """Train loss (nats) after retraining, were each pruned network linear in its weights. ``[P]``.

    The outputs f of a linearised network under gradient flow follow df/dt = -Θ ∂L/∂f, where
    Θ = J Jᵀ is the empirical neural tangent kernel of the pruned network (evaluation mode, all
    weights that train) and L the mean cross-entropy. This is solved numerically, from the pruned
    network's outputs, for a time of steps × learning rate, over the recipe's schedule, and divided
    by (1 - momentum); the score is L at its end. All on a fixed part of the training images, 400
    divided by the number of logits (fewer for networks of millions of weights). Weight decay,
    label smoothing and augmentation play no part. Not applicable with another optimiser than SGD,
    or where there would be fewer images than classes.
    """
    if recipe.optimizer != "sgd":
        raise NotApplicableError(
            f"gradient flow is the limit of SGD, and retraining.optimizer is {recipe.optimizer!r}"
        )
    weights = sum(p.numel() for p in dense.parameters() if p.requires_grad)
    if type(data.task) is not Classification or data.train.targets.ndim > 1:
        raise NotApplicableError("gradient flow is solved for a cross-entropy of classes")
    classes = data.task.classes
    with torch.no_grad():
        one = data.task.forward(copied(dense).eval(), data.example(1))
    logits = one.shape[1]
    most = min(TANGENT_OUTPUTS, JACOBIAN_BYTES // (one.element_size() * weights)) // logits
    if most < classes:
        raise NotApplicableError(
            f"the tangent kernel of {weights:,} weights and {logits} logits holds {most} images, "
            f"fewer than the {classes} classes"
        )
    split = sample(data.measured_train, data.task, most)
    few = split.take(torch.arange(len(split)))
    time = _flow_time(recipe, len(data.train))
    return np.array(
        [_flow(candidates.prune(dense, index), few, time) for index in range(len(candidates))]
    )


def _native_squares(dense: nn.Module, candidates: CandidateList, split: Split) -> np.ndarray:
    """The squared gradient norms ``[P]`` on the CPU's native kernels, many candidates as one."""
    example = candidates.prune(dense, 0)
    dtype = next(example.parameters()).dtype
    program = Program(lower(example, input_shape(split)), dtype)
    seen = Images(split.inputs.to(dtype).contiguous(), split.targets.contiguous())
    size = program.lanes * NATIVE_GROUPS * torch.get_num_threads()
    squares = []
    for start in range(0, len(candidates), size):
        some = range(start, min(start + size, len(candidates)))
        networks = [candidates.prune(dense, index) for index in some]
        packed = [
            program.pack(networks[i : i + program.lanes])
            for i in range(0, len(networks), program.lanes)
        ]
        gradients = program.gradients(packed, [seen] * len(packed))
        norms = torch.cat([g.double().square().sum(0) for g in gradients])
        squares.append(norms[: len(networks)].numpy())
    return np.concatenate(squares)


def _flow_time(recipe: Retraining, images: int) -> float:
    """The time of gradient flow that corresponds to retraining: learning rate times steps."""
    steps = recipe.steps_in_epoch(images)
    if not recipe.rate_changes_within_epoch:
        rates = steps * math.fsum(recipe.learning_rate_at(epoch) for epoch in range(recipe.epochs))
    else:
        rates = math.fsum(
            recipe.learning_rate_at(epoch, step, steps)
            for epoch in range(recipe.epochs)
            for step in range(steps)
        )
    return rates / (1 - recipe.momentum)


def _flow(network: nn.Module, split: Split, time: float) -> float:
    """The linearised network's loss after a time of gradient flow; NaN if it cannot be solved."""
    from scipy.integrate import solve_ivp
    from scipy.special import log_softmax, softmax

    outputs, kernel = _tangent_kernel(network.eval(), split)
    labels = split.targets.cpu().numpy()
    images, classes = outputs.shape
    truth = np.eye(classes)[labels]

    def slope(_: float, flat: np.ndarray) -> np.ndarray:
        residual = softmax(flat.reshape(images, classes), 1) - truth
        falling: np.ndarray = -kernel @ residual.ravel() / images
        return falling

    def jacobian(_: float, flat: np.ndarray) -> np.ndarray:
        p = softmax(flat.reshape(images, classes), 1)
        each = kernel.reshape(-1, images, classes)
        mixed = each * p - (each * p).sum(2, keepdims=True) * p
        matrix: np.ndarray = -mixed.reshape(kernel.shape) / images
        return matrix

    if not (np.isfinite(outputs).all() and np.isfinite(kernel).all()):
        return math.nan
    solved = solve_ivp(slope, (0, time), outputs.ravel(), method="BDF", t_eval=[time], jac=jacobian)
    if not solved.success:
        return math.nan
    final = log_softmax(solved.y[:, -1].reshape(images, classes), 1)
    return float(-final[np.arange(images), labels].mean())


def _tangent_kernel(network: nn.Module, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Outputs ``[N, K]``, and the empirical neural tangent kernel ``[N·K, N·K]`` between them."""
    own, rest = own_and_rest(network, trainable(network))

    def outputs(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(network, (weights, rest), (image[None],))[0]  # type: ignore[no-any-return]

    with sdpa_kernel(SDPBackend.MATH):
        each = vmap(jacrev(outputs), (None, 0))(own, split.inputs)
    with torch.no_grad():
        logits = network(split.inputs)
    kernel = logits.new_zeros(logits.numel(), logits.numel())
    for jacobian in each.values():
        rows = jacobian.flatten(0, 1).flatten(1)
        kernel += rows @ rows.T
    return logits.double().cpu().numpy(), kernel.double().cpu().numpy()
