"""The Python doors that commands call, each imported when it is first used.

So ``trueoracle COMMAND --help`` waits for neither torch nor pandas, and a command only for what it
needs itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueoracle.pruning.inspection import InspectedGroup, Inspection
    from trueoracle.search.search import SearchResult

_HOMES = {
    "BUDGETS": "search.replay",
    "Grid": "grid",
    "NETWORKS": "networks.registry",
    "RayExecutor": "executors.ray",
    "Results": "record.results",
    "SlurmExecutor": "executors.slurm",
    "Study": "study",
    "Watched": "report.watch",
    "budget_data": "figures.budget",
    "build": "networks.registry",
    "build_study": "run.material",
    "check_export": "search.export",
    "cost_in_words": "report.summary",
    "check_rule": "analysis.outcomes",
    "defaults": "networks.registry",
    "draw_budget": "figures.budget",
    "find_arms": "record.runs",
    "find_run": "record.runs",
    "find_team": "training.team",
    "inspect_network": "pruning.inspection",
    "is_plain": "search.folder",
    "is_known": "search.export",
    "last_run": "record.runs",
    "list_settings": "reproduce.reproduction",
    "list_study": "run.material",
    "load_criterion": "criteria.files",
    "load_weights": "networks.weights",
    "made_up": "networks.examples",
    "open_results": "record.pooled",
    "read_inputs": "networks.examples",
    "reproduce": "reproduce.reproduction",
    "score_bench": "bench.scoring",
    "serve": "report.watch",
    "summarise_scores": "report.scores",
    "write_report": "report.page",
}
__all__ = [*_HOMES, "InspectedGroup", "Inspection", "SearchResult"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"trueoracle.{_HOMES[name]}"), name)
