"""Losses of many candidates of one dense network, computing once what they share.

All candidates share the dense weights. Up to the layers that read a pruned one (its *consumers*)
they compute the same; a consumer is linear in the filters that are kept, so that each filter's
contribution to it is computed once, and a candidate is a sum of contributions; what follows runs
once for a whole block of candidates. :func:`evaluate_each` is the same the slow way.

Under the released code's wiring the j-th kept filter feeds the weights of the j-th survivor of the
L1 pass, so that there is a contribution for every (filter, place) that can occur: surgery that
keeps a filter several times, once a place, makes a wider network with just those channels.
"""

from trueoracle.criteria.shared.evaluate import evaluate_all, evaluate_each
from trueoracle.criteria.shared.losses import Shared, SharedLosses

__all__ = ["Shared", "SharedLosses", "evaluate_all", "evaluate_each"]
