"""Inject faults: ``python -m tests.chaos --rounds N``; exit code 1 where anything was lost."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from tests.chaos.faults import FAULTS, Bench, Tally, Unavailable
from trueoracle.data import datasets
from trueoracle.study import Study

HEADINGS = ("fault", "injected", "compared", "equal", "refused", "rows lost", "seconds")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often each fault is injected")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="faults whose names contain this text")
    parser.add_argument("--but", action="append", default=[], help="and those that do not")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the processes are forks, and threads do not survive that
    found: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.seed)
        _import_everything(bench)
        if not given.json:
            print(_line(HEADINGS), flush=True)
        for fault in FAULTS:
            if given.only and not any(text in fault.name for text in given.only):
                continue
            if any(text in fault.name for text in given.but):
                continue
            started, tally = time.monotonic(), Tally()
            try:
                fault.inject(bench, tally, given.rounds)
            except Unavailable as why:
                tally.problems.append(f"skipped: {why}")
            found[fault.name] = tally
            if not given.json:
                counts = (tally.injected, tally.compared, tally.equal, tally.refused, tally.lost)
                print(_line((fault.name, *counts, round(time.monotonic() - started))), flush=True)
                for problem in tally.problems:
                    print(f"    {' '.join(problem.split())}", flush=True)
    if given.json:
        print(json.dumps({name: asdict(tally) for name, tally in found.items()}))
    else:
        names = ("injected", "compared", "equal", "refused", "lost")
        total = [sum(getattr(tally, name) for tally in found.values()) for name in names]
        print(_line(("all", *total, "")))
    bad = any(t.lost or t.equal < t.compared for t in found.values())
    return int(bad or any(not p.startswith("skipped") for t in found.values() for p in t.problems))


def _line(cells: tuple[object, ...]) -> str:
    first, *rest = cells
    return f"{first:<40}" + "".join(f"{cell!s:>10}" for cell in rest)


def _import_everything(bench: Bench) -> None:
    """Run a study and a search here, so that the forks find imported what they need."""
    torch.set_num_threads(1)
    info = datasets.DATASETS["mnist-5k"]
    assert info.read is not None
    arrays = info.read(Path())
    datasets.DATASETS["mnist-5k"] = datasets.DatasetInfo(
        info.shape, info.classes, info.mean, info.std, lambda _: arrays
    )
    bench.clean()
    study = Study(bench.work / "chaos.toml", runs=bench.folder / "warm")
    for engine in ("loop", "wide"):
        Study(bench.work / "chaos.toml", runs=bench.folder / engine).run(
            engine=engine, progress=False
        )
    study.search("50%", engine="loop", progress=False).export(bench.folder / "x.safetensors")


if __name__ == "__main__":
    sys.exit(main())
