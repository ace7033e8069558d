"""Exported networks in EleutherAI's lm-evaluation-harness, on the text that a study tests on.

Run from the repository, once the study has run, with folders that ``search --export`` wrote::

    pip install lm_eval
    trueoracle search bible-llama-kv --budget 10% --export pruned
    python benchmarks/lm_harness.py bible-llama-kv pruned

The dense network of the study comes first. Two tasks are made of the study's test split: how well
the text is foretold (``loglikelihood_rolling``), and which of four words ends a sentence
(``multiple_choice``; the others end other sentences). The harness loads every network by
transformers alone, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import machine, show

import trueoracle
from trueoracle.data.text import as_parts, find_texts
from trueoracle.networks.weights import load_weights
from trueoracle.record.paths import DENSE
from trueoracle.search.folder import is_plain

CHOICES = 4
SENTENCE = re.compile(r"[^.?!:;]+[.?!:;]")


def held_out(study: trueoracle.Study) -> list[str]:
    """The lines of the study's test split."""
    data = study.spec.data
    parts, _ = as_parts(
        find_texts(data.name, data.path, data.columns),
        data.held_out,
        validation=data.validation_images > 0,
        stretches=data.stretches or 1,
    )
    return [line.strip() for line, _ in parts["test"].pieces() if line.strip()]


def endings(lines: Sequence[str], most: int) -> list[dict[str, Any]]:
    """Sentences without their last word, with that word and three that end other sentences."""
    draw = random.Random(0)
    sentences = [s.strip() for line in lines for s in SENTENCE.findall(line)]
    split = [s[:-1].rsplit(" ", 1) for s in sentences if 8 <= len(s.split()) <= 30]
    words = sorted({last for _, last in split if last.isalpha()})
    asked = [one for one in split if one[1].isalpha()]
    made = []
    for start, last in draw.sample(asked, min(most, len(asked))):
        choices = [last, *draw.sample([word for word in words if word != last], CHOICES - 1)]
        draw.shuffle(choices)
        made.append({"start": start, "choices": choices, "answer": choices.index(last)})
    return made


def tasks(folder: Path, lines: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The two tasks as the harness is told of them, on files in ``folder``."""
    texts = [{"text": line} for line in lines[:most]]

    def of(name: str, records: Sequence[dict[str, Any]], **said: Any) -> dict[str, Any]:
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
        return {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder)},
            "test_split": "test",
            "metadata": {"version": 1.0},
            **said,
        }

    return [
        of(
            "text",
            texts,
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        ),
        of(
            "endings",
            endings(lines, most),
            output_type="multiple_choice",
            doc_to_text="{{start}}",
            doc_to_choice="{{choices}}",
            doc_to_target="{{answer}}",
            metric_list=[{"metric": "acc"}],
        ),
    ]


def write_dense(study: trueoracle.Study, folder: Path) -> Path:
    """The study's dense network as transformers writes it, with its tokenizer."""
    prepared = study.prepare()
    network: Any = prepared.network
    load_weights(network, study.folder / DENSE)
    network.save_pretrained(folder)
    for name, text in prepared.data.files.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def measured(folder: Path, wanted: list[dict[str, Any]], context: int) -> dict[str, Any]:
    """One row of the table."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=str(folder), device="cpu", batch_size=16, max_length=context, dtype="float32"
    )
    found = lm_eval.simple_evaluate(model, tasks=[dict(one) for one in wanted], bootstrap_iters=0)
    text, ends = found["results"]["text"], found["results"]["endings"]
    asked = found["n-samples"]["endings"]["effective"]
    accuracy = ends["acc,none"]
    return {
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "bits per byte": text["bits_per_byte,none"],
        "word perplexity": text["word_perplexity,none"],
        "endings": f"{accuracy:.3f} ± {(accuracy * (1 - accuracy) / asked) ** 0.5:.3f}",
        "asked": asked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", help="a study of text that has run")
    parser.add_argument("exports", nargs="*", type=Path, help="folders of 'search --export'")
    parser.add_argument("--runs", default="runs", help="folder of the recorded studies")
    parser.add_argument("--most", type=int, default=400, help="lines, and sentences, to ask about")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for folder in arguments.exports:
        if not is_plain(folder):
            parser.error(f"{folder} is loaded by trueoracle.load alone, and not by the harness")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    study = trueoracle.Study(arguments.study, runs=arguments.runs)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        wanted = tasks(folder, held_out(study), arguments.most)
        context = study.spec.data.context or 128
        networks = {"dense": write_dense(study, folder / "dense")}
        networks |= {str(export): export for export in arguments.exports}
        rows = [
            {"network": name} | measured(path, wanted, context) for name, path in networks.items()
        ]
    import lm_eval

    versions = {"lm_eval": lm_eval.__version__}
    show({"machine": machine() | versions, "rows": rows}, arguments.json, rows)


if __name__ == "__main__":
    main()
