"""Takes over what a similar study has recorded."""

from __future__ import annotations

from trueoracle.errors import StoreError
from trueoracle.record.store import Store
from trueoracle.run.sitting import Sitting
from trueoracle.spec.spec import StudySpec

__all__ = ["adopt"]


def adopt(at: Sitting) -> dict[str, int]:
    """Copy what similar studies (an arm, fewer seeds) recorded; returns the rows by folder."""
    prepared, store, progress = at.prepared, at.store, at.progress
    spec, ours = prepared.spec, store.dense()
    taken: dict[str, int] = {}
    for other in at.siblings():
        try:
            with Store(other, read_only=True) as record:
                fields, dense, code = record.spec(), record.dense(), record.noted("code") or {}
            theirs = StudySpec.model_validate(fields)
        except (StoreError, ValueError):  # damaged, or of another version
            continue
        same = ("sha256", "architecture")
        if not dense or not ours or any(dense[name] != ours[name] for name in same):
            continue
        if code != dict(prepared.code):
            continue
        if unknown := [what for what, known in code.items() if not known]:
            progress.message(
                f"nothing is taken over from {other.name}: the code of {unknown[0]} cannot be "
                "read, and may differ"
            )
            continue
        if not other.name.endswith(theirs.digest):  # recorded under another DIGEST_FORMAT
            continue
        # Only separable criteria: other scores belong to the list of candidates they were made for.
        criteria = {
            name: criterion.fingerprint
            for name, criterion in at.applying
            if criterion.separable
            and criterion.fingerprint
            and theirs.score_digest == spec.score_digest
            and (not criterion.uses_recipe or theirs.outcome_digest == spec.outcome_digest)
        }
        seeds = spec.retraining.seeds if theirs.outcome_digest == spec.outcome_digest else ()
        try:
            with Store(other, read_only=True) as record:
                offered = store.offered(record, criteria=criteria, seeds=seeds)
        except StoreError as error:
            progress.message(f"nothing is taken over from {other.name}: {error}")
            continue
        if rows := store.adopt(offered):
            taken[other.name] = rows
            progress.message(f"{rows:,} results taken over from {other.name}")
    if taken:
        store.note(at.number, "adopted", taken)
    return taken
