"""Losses of many candidates of one dense network; what candidates share is computed once.

All candidates share the dense weights. Up to the layers that read a pruned layer (its *consumers*),
they compute the same. A consumer is linear in the kept filters: each filter's contribution to the
consumer's output is computed once, and a candidate adds up the contributions of its filters. All
later layers run once for a whole block of candidates. :func:`evaluate_each` is the slow reference.

Under the released code's wiring, the j-th kept filter feeds the weights of the j-th survivor of the
L1 pass. There is then a contribution for every (filter, place) that can occur: surgery that keeps a
filter several times, once per place, makes a wider network with just those channels.
"""

from trueoracle.criteria.shared.evaluate import evaluate_all, evaluate_each
from trueoracle.criteria.shared.losses import Shared, SharedLosses

__all__ = ["Shared", "SharedLosses", "evaluate_all", "evaluate_each"]
