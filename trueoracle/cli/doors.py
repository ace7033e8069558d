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
    "arms_of": "spec.file",
    "budget_data": "figures.budget",
    "BUDGETS": "search.replay",
    "build": "networks.registry",
    "build_study": "run.material",
    "check_export": "search.export",
    "check_rule": "analysis.outcomes",
    "cost_in_words": "report.summary",
    "defaults": "networks.registry",
    "draw_budget": "figures.budget",
    "field_paths": "spec.file",
    "find_arms": "record.runs",
    "find_run": "record.runs",
    "find_team": "training.team",
    "FORMATS": "figures.scatter",
    "Grid": "grid",
    "inspect_network": "pruning.inspection",
    "is_known": "search.export",
    "is_plain": "search.folder",
    "is_reference": "spec.file",
    "last_run": "record.runs",
    "list_settings": "reproduce.reproduction",
    "list_study": "run.material",
    "load_criterion": "criteria.files",
    "load_weights": "networks.weights",
    "made_up": "networks.examples",
    "NETWORKS": "networks.registry",
    "open_results": "record.pooled",
    "parse_reference": "spec.file",
    "RayExecutor": "executors.ray",
    "read_inputs": "networks.examples",
    "reproduce": "reproduce.reproduction",
    "Results": "record.results",
    "score_bench": "bench.scoring",
    "serve": "report.watch",
    "shipped_grids": "spec.file",
    "shipped_studies": "spec.file",
    "SlurmExecutor": "executors.slurm",
    "Study": "study",
    "summarise_scores": "report.scores",
    "variants": "spec.grid",
    "Watched": "report.watch",
    "write_report": "report.page",
}
__all__ = [*_HOMES, "InspectedGroup", "Inspection", "SearchResult"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"trueoracle.{_HOMES[name]}"), name)
