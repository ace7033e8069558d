"""Does what a pruning criterion optimises before retraining predict the network after it?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trueoracle.version import __version__

if TYPE_CHECKING:
    from trueoracle.analysis.assessment import Assessment, assess
    from trueoracle.analysis.relation import Relation, relate
    from trueoracle.analysis.table import CandidateTable
    from trueoracle.criteria.base import criterion
    from trueoracle.data.splits import Split, Splits
    from trueoracle.errors import TrueOracleError
    from trueoracle.executors.ray import RayExecutor
    from trueoracle.executors.slurm import SlurmExecutor
    from trueoracle.grid import Grid
    from trueoracle.networks.registry import network
    from trueoracle.record.results import Results
    from trueoracle.search.export import load
    from trueoracle.spec.grid import Variant, variants
    from trueoracle.spec.spec import StudySpec
    from trueoracle.study import Study
    from trueoracle.tasks.base import Task
    from trueoracle.tasks.metric import Metric

__all__ = [
    "Assessment",
    "CandidateTable",
    "Grid",
    "Metric",
    "RayExecutor",
    "Relation",
    "Results",
    "SlurmExecutor",
    "Split",
    "Splits",
    "Study",
    "StudySpec",
    "Task",
    "TrueOracleError",
    "Variant",
    "__version__",
    "assess",
    "criterion",
    "load",
    "network",
    "relate",
    "variants",
]

# Imported when first used: commands that read tables need no torch, whose import takes seconds.
_HOMES = {
    "Assessment": "analysis.assessment",
    "CandidateTable": "analysis.table",
    "Grid": "grid",
    "Metric": "tasks.metric",
    "RayExecutor": "executors.ray",
    "Relation": "analysis.relation",
    "Results": "record.results",
    "SlurmExecutor": "executors.slurm",
    "Split": "data.splits",
    "Splits": "data.splits",
    "Study": "study",
    "StudySpec": "spec.spec",
    "Task": "tasks.base",
    "TrueOracleError": "errors",
    "Variant": "spec.grid",
    "assess": "analysis.assessment",
    "criterion": "criteria.base",
    "load": "search.export",
    "network": "networks.registry",
    "relate": "analysis.relation",
    "variants": "spec.grid",
}


def __dir__() -> list[str]:
    own = {name for name in globals() if name.startswith("__")}
    return sorted(own | {*__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trueoracle' has no attribute {name!r}")
    return getattr(import_module(f"trueoracle.{_HOMES[name]}"), name)
