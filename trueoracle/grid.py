"""Several studies in Python: all variants of a reference, run and reported together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueoracle.errors import InputError
from trueoracle.record.networks import is_recorded
from trueoracle.record.pooled import open_results
from trueoracle.record.results import Results
from trueoracle.run.progress import Progress, as_progress
from trueoracle.spec.file import with_files
from trueoracle.spec.grid import Variant, grid_digest, variants

if TYPE_CHECKING:
    from trueoracle.report.grid import WrittenGrid
    from trueoracle.study import Study

__all__ = ["Grid"]


class Grid:
    """The studies of a reference: every point of a grid; a plain study counts as a grid of one.

    ::

        grid = Grid("lenet5-mini-width@small")
        grid.run()["width-20"].correlate()
        print(grid.report().page)
    """

    def __init__(
        self,
        grid: str | Path | Sequence[Variant],
        *,
        overrides: Mapping[str, Any] | None = None,
        runs: str | Path = "runs",
    ) -> None:
        """Resolve a reference (:func:`trueoracle.variants`), or take resolved variants.

        ``overrides`` maps dotted fields to values in all studies. Results are kept below ``runs``.
        Raises :class:`InputError`, in one line, where the arguments do not give a valid study.
        """
        if isinstance(grid, str | Path):
            grid = variants(str(grid), overrides)
        self.variants = tuple(grid)
        self.runs = Path(runs)

    @property
    def name(self) -> str:
        """The name of the grid, with its arms; for a plain study, the name of the study."""
        return self.variants[0].grid or self.variants[0].spec.name

    @property
    def is_whole(self) -> bool:
        """Whether this is a grid, rather than one study."""
        return bool(self.variants[0].grid)

    def run(
        self,
        *,
        progress: bool | Progress = True,
        device: str = "auto",
        engine: str = "auto",
        memory: str | None = None,
        executor: Executor | None = None,
        retry_failed: bool = False,
        track: str | None = None,
    ) -> dict[str, Results]:
        """Run every study from where it stopped, and return the results by the points' labels.

        The arguments are those of :meth:`trueoracle.Study.run`. Every study is checked before the
        first one runs: :class:`InputError` names the study that cannot run.
        """
        shown = as_progress(progress)
        self._check(shown, device, engine)
        return self._each(
            shown,
            lambda study: study.run(
                progress=shown,
                device=device,
                engine=engine,
                memory=memory,
                executor=executor,
                retry_failed=retry_failed,
                track=track,
            ),
        )

    def score(
        self, *, progress: bool | Progress = True, device: str = "auto"
    ) -> dict[str, Results]:
        """Score the candidates of every study without retraining, otherwise like :meth:`run`."""
        shown = as_progress(progress)
        self._check(shown, device, None)
        return self._each(shown, lambda study: study.score(progress=shown, device=device))

    def plan(
        self,
        workers: Sequence[int],
        *,
        threads: int = 1,
        networks: int | None = None,
        executor: str = "ray",
        progress: bool | Progress = False,
        device: str = "auto",
        engine: str = "auto",
        memory: str | None = None,
    ) -> dict[str, Any]:
        """How long retraining takes on so many workers, by a simulation of measured chunks.

        Several studies, and several dense networks, are retrained one after the other. The fields
        are listed in ``docs/tables.md``.

        - ``workers``: how many there are; one plan is made for each number;
        - ``threads``: CPU threads of each worker;
        - ``networks``: how many to retrain, instead of all of the study's;
        - ``executor``: ``"ray"`` or ``"slurm"``, whose lengths of chunks are taken.

        Raises :class:`InputError` for ``networks`` of several studies.
        """
        from trueoracle.run.workload import plans  # imports torch

        shown = as_progress(progress)
        studies = [one for variant in self.variants for one in self._study(variant).networks]
        if networks is not None and len(studies) > 1:
            raise InputError(f"networks are of one study, and {self.name} has {len(studies)}")
        shown.stage("measure", len(studies), 0, "studies")
        each = []
        for study in studies:
            each.append((study.prepare(device), study.folder))
            shown.advance()
        return plans(
            each,
            workers,
            threads=threads,
            networks=networks,
            executor=executor,
            engine=engine,
            memory=memory,
        )

    def folders(self) -> dict[str, Path]:
        """The folders of the studies that are recorded so far, by label."""
        known = {_label(one): self.runs / one.spec.folder_name for one in self.variants}
        return {label: one for label, one in known.items() if is_recorded(one)}

    def results(self) -> dict[str, Results]:
        """The studies that are recorded so far, by label."""
        return {label: open_results(folder) for label, folder in self.folders().items()}

    def summary(self, outcome: str = "last") -> dict[str, Any]:
        """What is recorded of the studies, as plain values for JSON.

        The fields are those of the summary of a study or a grid in ``docs/tables.md``. Raises
        :class:`InputError` for a plain study that is not recorded.
        """
        from trueoracle.report.grid import summarise_grid  # imports matplotlib, which is slow
        from trueoracle.report.summary import summarise

        found = self.results()
        if self.is_whole:
            return summarise_grid(self.variants, found, outcome)
        if not found:
            raise InputError(f"{self.name} is not recorded in {self.runs} with these settings")
        return summarise(found[self.name], outcome)

    def report(
        self, out: str | Path | None = None, outcome: str = "last", *, share: bool = False
    ) -> WrittenGrid:
        """Write ``report.html``, ``summary.json`` and the figures of what is recorded of a grid.

        ``out`` is the folder to write to, by default one below ``runs`` that is named after the
        grid. ``outcome`` says which epochs count. With ``share``, host, user and absolute paths
        are left out. Raises :class:`InputError` where no point of the
        grid is recorded, and for a plain study.
        """
        from trueoracle.report.grid import write_grid_report

        if not self.is_whole:
            raise InputError(f"{self.name} is one study, not a grid: use Study(…).report()")
        if not (found := self.results()):
            raise InputError(
                f"no point of {self.name} is recorded in {self.runs} with these settings"
            )
        points = self.variants
        if share:
            found = {label: one.to_share() for label, one in found.items()}
            points = tuple(_to_share(one) for one in points)
        own = self.runs / f"{self.name}-{grid_digest(self.variants)}" / "report"
        return write_grid_report(points, found, Path(out or own), outcome)

    def _each(
        self, progress: Progress, carry_out: Callable[[Study], Results]
    ) -> dict[str, Results]:
        found = {}
        for place, one in enumerate(self.variants, start=1):
            if one.grid:
                progress.message(f"{place} of {len(self.variants)}: {one.spec.name}")
            found[_label(one)] = carry_out(self._study(one))
        return found

    def _check(self, progress: Progress, device: str, engine: str | None) -> None:
        """Prepare every point of a grid; a plain study is checked when it runs.

        Networks that are not here yet are downloaded first, since a study's digest covers the
        network's files.
        """
        self.variants = tuple(
            replace(one, spec=with_files(one.spec, progress.message))
            if one.spec.network.files is None
            else one
            for one in self.variants
        )
        if not self.is_whole:
            return
        progress.stage("check", len(self.variants), 0, "studies")
        for one in self.variants:
            try:
                self._study(one).check(device, engine)
            except InputError as error:
                raise InputError(f"{one.spec.name}: {error}") from error
            progress.advance()

    def _study(self, variant: Variant) -> Study:
        from trueoracle.study import Study  # imports torch, which a report does not need

        return Study(variant.spec, runs=self.runs)


def _to_share(variant: Variant) -> Variant:
    """The variant, whose purpose is the only field of it that is shown and may hold a path."""
    from trueoracle.report.share import without_places

    purpose = without_places(variant.spec.purpose)
    return replace(variant, spec=variant.spec.model_copy(update={"purpose": purpose}))


def _label(variant: Variant) -> str:
    return variant.label if variant.grid else variant.spec.name
