# ruff: noqa: E501 - a term is one line
"""The words of a page, each in one line, and which table headings they explain."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["GLOSSARY", "Term", "term_of"]


@dataclass(frozen=True)
class Term:
    """A word of the glossary: its ``id`` in a page, its meaning, and the headings it explains."""

    id: str
    name: str
    meaning: str
    headings: tuple[str, ...] = ()


GLOSSARY = (
    Term("candidate", "candidate", "One way to prune: which filters, whole layers or single weights go.", ("n", "candidate")),
    Term("filter", "filter", "What goes at a time: a filter of a convolution, a hidden unit, a head, or a layer where whole layers are pruned."),
    Term("score", "score, criterion", "What a criterion says of a candidate before retraining; the candidate of the lowest score is chosen.", ("criterion", "first", "second", "given", "score")),
    Term("outcome", "outcome", "What a candidate is after retraining: the mean over the seeds.", ("outcome",)),
    Term("network", "dense network", "The network before pruning; candidates are only compared with others of the same one.", ("dense network",)),
    Term("arm", "arm", "A changed variant of the study, shown beside it; its badge names the changed fields.", ("arm",)),
    Term("agreement", "agreement", "Kendall's rank correlation of score and outcome, its sign turned so that +1 is perfect and 0 is chance.", ("agreement", "difference")),
    Term("tau", "Kendall's τ", "The same rank correlation with its sign as it is: near −1 for a good criterion where more is better.", ("Kendall's τ", "partial τ")),
    Term("interval", "95% interval", "Where the value would lie, were the experiment done again with others of what it counts; what is given stays.", ("95% interval", "95%")),
    Term("at-most", "at most", "The size of τ that two one-sided tests leave with 95%.", ("at most",)),
    Term("p", "p (Holm)", "How often a τ as far from zero comes by shuffled filter labels, adjusted for all that is shown.", ("p (Holm)",)),
    Term("certain", "certain", "Holm's p is below 0.05 and the interval, which has to allow for other filters, leaves zero out: filled dots and answers go by this one rule."),
    Term("answer", "answer", "Yes: τ is certain, in the right direction, and 0.2 or more. No: certain and in the wrong direction, or certain to be below 0.2. Unclear: all else.", ("answer",)),
    Term("ceiling", "ceiling", "An estimate of the agreement that noise leaves to a perfect criterion, since another seed orders the candidates otherwise.", ("ceiling",)),
    Term("without-noise", "without noise", "The agreement divided by what noise leaves of it: an estimate, at most 1, none where the ceiling is below 0.2.", ("without noise",)),
    Term("chosen", "star, chosen", "The candidate of the lowest score. Where several share it, each has a star and its numbers are means over them.", ("tied",)),
    Term("anomaly", "anomaly", "A candidate that ends strictly better than the chosen one; the ratio is their share.", ("anomalies", "over {k} lowest")),
    Term("rank", "rank, percentile", "The chosen candidate's place by outcome (1 is the best), and the share of the others that end worse.", ("percentile", "rank", "rank of the best")),
    Term("regret", "regret", "How much better the best candidate by some seeds is than the chosen one, in the others.", ("regret", "regret, in sample", "regret at {k}")),
    Term("beats-random", "beats random", "How often the chosen candidate ends better than one drawn by chance.", ("beats random",)),
    Term("precision", "precision at k", "How many of the k lowest scores are among the k best outcomes.", ("precision at {k}",)),
    Term("top-weighted", "top-weighted", "Agreement in which the order of the best candidates counts most.", ("top-weighted",)),
    Term("other-correlations", "Spearman, Pearson", "Correlations of the ranks and of the values, signs as they are.", ("Spearman", "Pearson")),
    Term("textbook", "p (textbook)", "As if candidates did not overlap in what they prune: too small.", ("p (textbook)",)),
    Term("discordant", "discordant pair", "Two candidates that score and outcome order oppositely.", ("discordant",)),
    Term("additive", "sum over filters", "What pruning a filter adds to the outcome, in a sum of one number per filter fitted to all candidates."),
    Term("short", "short retraining", "The outcome of the arm “short” as one more score: how well part of the epochs predicts all of them."),
    Term("meta", "over all studies", "A random-effects mean over the studies of a grid; I² is the share of their variation that is more than their own uncertainty."),
)  # fmt: skip


def term_of(heading: str) -> str:
    """The id of the term that explains a heading, whatever its k; empty for words alone."""
    plain = re.sub(r"\b(\d+|k)\b", "{k}", heading)
    for term in GLOSSARY:
        if heading in term.headings or plain in term.headings:
            return term.id
    return ""
