"""Makes trueoracle/report/vendor/plot.min.js anew from npm's packages, and checks its hash.

    python scripts/vendor_plot.py             # says whether the file is what the packages give
    python scripts/vendor_plot.py --write     # after a change in scripts/plot: writes both

Needs npm and the network. Versions are those of scripts/plot/package-lock.json, whose hashes npm
checks; esbuild bundles what scripts/plot/entry.js names, and leaves out the rest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "plot"
VENDOR = Path(__file__).parents[1] / "trueoracle" / "report" / "vendor"
PACKAGES = ("@observablehq/plot", "d3", "interval-tree-1d", "binary-search-bounds", "isoformat")
BUNDLE = (
    "esbuild", "entry.js", "--bundle", "--minify", "--format=iife", "--global-name=Plot",
    "--target=es2020", "--charset=ascii", "--legal-comments=none", "--outfile=plot.min.js",
)  # fmt: skip


def made(folder: Path) -> tuple[bytes, str, dict[str, str]]:
    """The bundle, the licences of what is in it, and the version of each package."""
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    subprocess.run(("npm", "ci", "--ignore-scripts", "--silent"), cwd=folder, check=True)
    subprocess.run(("npx", "--no-install", *BUNDLE), cwd=folder, check=True)
    licences, versions = [], {}
    for name in PACKAGES:
        package = folder / "node_modules" / name
        versions[name] = json.loads((package / "package.json").read_text())["version"]
        (licence,) = package.glob("LICENSE*")
        licences.append(f"{name} {versions[name]}\n\n{licence.read_text().strip()}\n")
    return (folder / "plot.min.js").read_bytes(), "\n\n".join(licences), versions


def main() -> int:
    """Check or write the vendored file; 1 where it is not what the packages give."""
    with tempfile.TemporaryDirectory() as folder:
        bundle, licences, versions = made(Path(folder))
    sha256 = hashlib.sha256(bundle).hexdigest()
    about = {"file": "plot.min.js", "sha256": sha256, "packages": versions}
    if "--write" in sys.argv:
        VENDOR.mkdir(exist_ok=True)
        (VENDOR / "plot.min.js").write_bytes(bundle)
        (VENDOR / "plot.LICENSE.txt").write_text(licences)
        (VENDOR / "plot.json").write_text(json.dumps(about, indent=2) + "\n")
    kept = json.loads((VENDOR / "plot.json").read_text())
    same = kept == about and (VENDOR / "plot.min.js").read_bytes() == bundle
    print(f"plot.min.js: {len(bundle):,} bytes, SHA-256 {sha256}: {'same' if same else 'DIFFERS'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
