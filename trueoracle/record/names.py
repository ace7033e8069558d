"""What scores are called in figures and sentences. Needs no torch."""

from __future__ import annotations

__all__ = ["score_name"]

_SCORE_NAMES = {
    "oracle": "pruned train loss",
    "oracle-subset": "pruned train loss on 512 images",
    "oracle-validation": "pruned validation loss",
    "oracle-bn": "pruned train loss with new batch norm statistics",
    "loss-after-steps": "train loss after 20 steps of retraining",
    "l1": "L1 norm of the pruned filters",
    "l2": "L2 norm of the pruned filters",
    "lamp": "LAMP score of the pruned filters",
    "fpgm": "distance of the pruned filters from all filters",
    "bn-scale": "batch norm scale of the pruned filters",
    "taylor": "squared first-order loss change of the pruned filters",
    "gradient": "gradient magnitude of the pruned filters",
    "snip": "connection sensitivity of the pruned filters",
    "grasp": "gradient flow of the pruned filters",
    "synflow": "synaptic flow of the pruned filters",
    "obd": "OBD saliency of the pruned filters",
    "fisher": "Fisher importance of the pruned filters",
    "activation-mean": "mean activation of the pruned filters",
    "apoz": "share of non-zero activations of the pruned filters",
    "hrank": "feature map rank of the pruned filters",
    "thinet": "error of the next layer's output",
    "tpp": "correlation of the pruned filters with all filters",
    "gradient-norm": "minus the squared gradient norm after pruning",
    "gradient-flow": "linearised train loss after retraining",
    "random": "a random number",
}
_OF_FILTERS = " of the pruned filters"


def score_name(criterion: str, kind: str = "structured") -> str:
    """What a criterion's score is called, where whole filters or single weights are pruned."""
    if criterion == "l2" and kind == "unstructured":
        return "squared L2 norm of the pruned weights"
    name = _SCORE_NAMES.get(criterion, criterion)
    if kind == "unstructured" and name.endswith(_OF_FILTERS):
        name = name.removesuffix(_OF_FILTERS) + " of the pruned weights"
    return name
