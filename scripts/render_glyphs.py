"""Render the data set ``glyphs``: letters and digits of openly licensed fonts.

    python scripts/render_glyphs.py FONTS [--to trueoracle/data/glyphs]

FONTS is a folder with one unpacked ``@fontsource`` package in each subfolder; ``--fetch NAMES``
first fills it by ``npm pack`` with the packages that the text file NAMES lists. Written are one
picture, ``glyphs.png`` (one row per font, one column per character, 28×28 pixels of 16 greys), and
``fonts.csv`` (row by row: font, split, licence, package). The result depends on the fonts alone.

A font is left out where one of the 62 characters is missing or empty, where its small letters are
its capitals, where it looks almost like a font before it, and where its licence is not an open one.
Fonts of one superfamily (the first word of the name) stay in one split: testing means new designs.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import string
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIDE, MARGIN, FINER = 28, 1, 8
"""Pixels of an image, empty ones at each side, and how much finer a character is drawn first."""
LICENCES = ("OFL-1.1", "Apache-2.0", "UFL-1.0", "mit", "CC0-1.0", "Unlicense")
TEST_FONTS, VALIDATION_FONTS = 140, 40
SAME_FONT = 0.025
"""Mean difference of two fonts' pixels (of 1) below which the later one is left out."""
TELLING = "ABDEGHNQRT"
"""Capitals whose small letters have another shape, whatever the size."""


def fetch(names: Path, to: Path) -> None:
    """Unpack what is needed of the packages that a file lists."""
    for name in names.read_text().split():
        folder = to / name
        if folder.is_dir():
            continue
        packed = subprocess.run(
            ["npm", "pack", f"@fontsource/{name}", "--silent"],
            cwd=to, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if packed.returncode:
            print(f"{name}: not to be had")
            continue
        archive = to / packed.stdout.strip()
        folder.mkdir()
        wanted = ["package/metadata.json", "package/package.json", "package/files/*-latin-400-*"]
        unpack = ["tar", "xzf", archive.name, "-C", name, "--strip-components=1", "--wildcards"]
        subprocess.run([*unpack, *wanted], cwd=to, capture_output=True, check=False)
        archive.unlink()


def draw(path: Path) -> np.ndarray | None:
    """The characters of one font ``[62, 28, 28]`` from 0 to 1; None where one is missing.

    All are drawn at one size, the largest at which each fits, on one base line: a small letter is
    smaller than its capital, as in print.
    """
    with TTFont(path) as opened:
        found = opened.getBestCmap() or {}
        opened.flavor = None  # unpacked, since FreeType reads some of these packed files as broken
        opened.save(plain := io.BytesIO())
    if any(ord(character) not in found for character in CHARACTERS):
        return None
    font = _sized(plain, 20 * FINER)
    boxes = [font.getbbox(character, anchor="ls") for character in CHARACTERS]
    if any(right <= left or bottom <= top for left, top, right, bottom in boxes):
        return None
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    widest = max(box[2] - box[0] for box in boxes)
    room = (SIDE - 2 * MARGIN) * FINER
    scale = room / max(bottom - top, widest)
    font = _sized(plain, 20 * FINER * scale)
    base = (SIDE * FINER - (bottom - top) * scale) / 2 - top * scale
    return np.stack([_draw(font, character, base) for character in CHARACTERS])


def _sized(plain: io.BytesIO, size: float) -> ImageFont.FreeTypeFont:
    plain.seek(0)
    return ImageFont.truetype(plain, size, layout_engine=ImageFont.Layout.BASIC)


def _draw(font: ImageFont.FreeTypeFont, character: str, base: float) -> np.ndarray:
    large = Image.new("L", (SIDE * FINER, SIDE * FINER))
    left, _, right, _ = font.getbbox(character, anchor="ls")
    across = (SIDE * FINER - (right - left)) / 2 - left
    ImageDraw.Draw(large).text((across, base), character, fill=255, font=font, anchor="ls")
    return np.asarray(large.reduce(FINER), dtype=np.float64) / 255


def has_small_letters(drawn: np.ndarray) -> bool:
    """Whether most small letters have another shape than their capitals."""
    differences = []
    for capital in TELLING:
        pair = [_fitted(drawn[CHARACTERS.index(one)]) for one in (capital, capital.lower())]
        differences.append(np.abs(pair[0] - pair[1]).mean())
    return float(np.median(differences)) > 0.15


def _fitted(image: np.ndarray) -> np.ndarray:
    """What is inked, brought to 16×16."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    inked = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray((inked * 255).astype(np.uint8)).resize((16, 16))) / 255


def choose(folder: Path) -> tuple[list[dict[str, str]], list[np.ndarray]]:
    """The fonts that are taken, and their characters; says why others are not."""
    rows: list[dict[str, str]] = []
    taken: list[np.ndarray] = []
    for package in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(package.glob("files/*-latin-400-normal.woff"))
        about = json.loads((package / "metadata.json").read_text())
        said = about["license"]
        licence = said["type"] if isinstance(said, dict) else str(said)
        if not files or licence not in LICENCES:
            print(f"{package.name}: {'licence ' + licence if files else 'no upright latin font'}")
            continue
        drawn = draw(files[0])
        if drawn is None or not has_small_letters(drawn):
            print(f"{package.name}: characters missing or small letters that are capitals")
            continue
        alike = [row["font"] for row, other in zip(rows, taken, strict=True)
                 if np.abs(drawn - other).mean() < SAME_FONT]  # fmt: skip
        if alike:
            print(f"{package.name}: looks like {alike[0]}")
            continue
        version = json.loads((package / "package.json").read_text())["version"]
        of = f"@fontsource/{package.name} {version}"
        rows.append({"font": about["family"], "split": "", "licence": licence, "package": of})
        taken.append(drawn)
    return rows, taken


def split(rows: list[dict[str, str]]) -> None:
    """Say for each font which split it is in, superfamilies whole."""
    families = defaultdict(list)
    for row in rows:
        families[row["font"].split()[0].lower()].append(row)
    names = sorted(families)
    random.Random(0).shuffle(names)
    left = {"test": TEST_FONTS, "validation": VALIDATION_FONTS, "train": len(rows)}
    for name in names:
        part = next(part for part, room in left.items() if room >= len(families[name]))
        left[part] -= len(families[name])
        for row in families[name]:
            row["split"] = part


def main() -> None:
    """Render, and write what was rendered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fonts", type=Path)
    parser.add_argument("--fetch", type=Path)
    parser.add_argument("--to", type=Path, default=Path("trueoracle/data/glyphs"))
    options = parser.parse_args()
    if options.fetch is not None:
        options.fonts.mkdir(exist_ok=True)
        fetch(options.fetch.resolve(), options.fonts)
    rows, taken = choose(options.fonts)
    split(rows)
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["split"], rows[i]["font"]))
    sheet = np.concatenate([np.concatenate(list(taken[i]), axis=1) for i in order])
    options.to.mkdir(exist_ok=True)
    # Sixteen greys, the eye's paper white as 0: what is drawn is what is bright.
    levels = Image.fromarray(np.rint(sheet * 15).astype(np.uint8), mode="P")
    levels.putpalette([17 * level for level in range(16) for _ in range(3)])
    levels.save(options.to / "glyphs.png", bits=4, optimize=True)
    with (options.to / "fonts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[i] for i in order)
    counts = {
        part: sum(row["split"] == part for row in rows) for part in ("train", "validation", "test")
    }
    print(f"{len(rows)} fonts {counts}: {(options.to / 'glyphs.png').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
