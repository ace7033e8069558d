"""The example reports of the docs: real studies, whose records lie in examples/reports.

python scripts/example_reports.py FOLDER    # write the pages
python scripts/example_reports.py --run     # run the studies anew, and keep their records

mkdocs calls `on_files`: the pages are made whenever the site is built.
"""

from __future__ import annotations

import gzip
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from trueoracle import Study
from trueoracle.files import write_bytes
from trueoracle.record.pooled import open_results
from trueoracle.record.runs import find_run

KEPT = Path(__file__).parents[1] / "examples" / "reports"

EXAMPLES = {
    "glyphs-fc1-0.2": ("glyphs-fc1-0.2",),
    "two-wirings": tuple(f"{KEPT}/two-wirings.toml{arm}" for arm in ("", "@as-released", "@short")),
}
"""By the page's name, the studies of its report, the first one first."""

NEEDED = ("study.sqlite", "networks.json")
"""The files of a run that a report reads, and for kernels as pictures:"""
WEIGHTS = "dense.safetensors"


def pages() -> Iterator[tuple[str, str]]:
    """The name and the text of each page, from the records that are kept."""
    for name, (study, *_) in EXAMPLES.items():
        with tempfile.TemporaryDirectory() as folder:
            runs = Path(folder)
            with tarfile.open(KEPT / f"{name}.tar.gz") as archive:
                archive.extractall(runs, filter="data")
            out = runs / "report"
            open_results(find_run(study, runs)).report(out, share=True)
            yield name, (out / "report.html").read_text(encoding="utf-8")


def run() -> None:
    """Run every study and keep what a report needs of its record."""
    for name, studies in EXAMPLES.items():
        with tempfile.TemporaryDirectory() as folder:
            for study in studies:
                Study(study, runs=folder).run()
            keep(name, Path(folder))


def keep(name: str, runs: Path) -> None:
    """Pack the records below ``runs``: the same records give the same bytes."""
    held = BytesIO()
    wanted = (*NEEDED, WEIGHTS) if name == "two-wirings" else NEEDED
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(runs.glob("*/*")):
            if path.name in wanted:
                entry = tarfile.TarInfo(str(path.relative_to(runs)))
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)
    write_bytes(KEPT / f"{name}.tar.gz", gzip.compress(held.getvalue(), mtime=0))


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the site (an event of mkdocs)."""
    from mkdocs.structure.files import File

    for name, text in pages():
        files.append(File.generated(config, f"reports/{name}.html", content=text))
    return files


if __name__ == "__main__":
    if sys.argv[1:] == ["--run"]:
        run()
    else:
        for name, text in pages():
            (Path(sys.argv[1]) / f"{name}.html").write_text(text, encoding="utf-8")
