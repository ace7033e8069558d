"""Studies of text and of questions, from their fields to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.data.language import LINES, tokenizer
from tests.data.test_language import write_pope
from trueoracle import Study
from trueoracle.engines.choose import check_engine
from trueoracle.errors import InputError
from trueoracle.report.sections import dense_facts
from trueoracle.report.words import data_in_words
from trueoracle.tasks.language import IGNORED

pytest.importorskip("tokenizers")


class Tiny(nn.Module):
    """Tells the next token from the last one, and from the image where there is one."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 6)
        self.hidden = nn.Linear(6, 8)
        self.logits = nn.Linear(8, classes)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        seen = self.embedding(input_ids)
        if pixel_values is not None:
            seen = seen + pixel_values.mean((1, 2, 3))[:, None, None]
        logits: Tensor = self.logits(torch.relu(self.hidden(seen)))
        return logits


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUEORACLE_DATA", str(tmp_path / "data"))


def study(tmp_path: Path, data: dict[str, Any], **fields: Any) -> Study:
    recipe = {"epochs": 1, "batch_size": 16, "learning_rate": 0.1, "schedule": "constant"}
    return Study(
        name="mine",
        network={"name": "tests.run.test_language:Tiny"},
        data=data,
        pruning={"layers": {"hidden": 0.5}, "candidates": 3},
        dense=recipe,
        retraining={**recipe, "seeds": [0]},
        runs=tmp_path / "runs",
        **fields,
    )


def of_text(tmp_path: Path, **fields: Any) -> dict[str, Any]:
    file = tmp_path / "text.txt"
    if not file.exists():
        file.write_text("".join(LINES), "utf-8")
    return {"name": "text", "path": str(file), "tokenizer": "bpe:300", "context": 16, **fields}


@pytest.mark.slow
def test_a_study_of_text_from_start_to_report(tmp_path: Path) -> None:
    mine = study(tmp_path, of_text(tmp_path, stride=8, bos="one"))
    assert mine.spec.task == "next-token"
    results = mine.run(progress=False)
    facts = results.data_facts
    assert (mine.folder / "tokenizer.json").read_text("utf-8")
    written = mine.report()
    said = data_in_words(facts)
    for part in (
        f"text text.txt (SHA-256 {facts['text_sha256'][:12]})",
        f"tokenizer bpe:300 of 300 tokens (SHA-256 {facts['tokenizer_sha256'][:12]})",
        "context 16; stride 8; BOS one",
        f"tokens counted: train {facts['tokens_counted']['train']:,}, ",
    ):
        assert part in said
    assert said in written.page.read_text("utf-8")
    summary = json.loads(written.summary.read_text("utf-8"))[0]
    assert summary["data_facts"] == facts
    assert [label for _, label in dense_facts(summary)] == [
        "train / test loss", "test perplexity", "test token accuracy",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_recorded_loss_is_that_by_hand(tmp_path: Path) -> None:
    mine = study(tmp_path, of_text(tmp_path, stride=8))
    results = mine.run(progress=False)
    prepared = mine.prepare()
    network = Tiny(300)
    from safetensors.torch import load_file

    network.load_state_dict(load_file(mine.folder / "dense.safetensors"))
    total, count = 0.0, 0
    for batch in prepared.data.test.batches(7):
        with torch.no_grad():
            told = network(batch["input_ids"]).double().log_softmax(-1)
        for text, labels in enumerate(batch["labels"].tolist()):
            for place in range(1, 16):
                if labels[place] != IGNORED:
                    total -= float(told[text, place - 1, labels[place]])
                    count += 1
    assert count == results.data_facts["tokens_counted"]["test"]
    assert results.dense is not None
    assert results.dense["test_loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.slow
def test_a_study_of_questions_says_what_needs_no_image(tmp_path: Path) -> None:
    write_pope(tmp_path)
    data = {
        "name": "pope",
        "path": str(tmp_path / "coco_pope_random.json"),
        "tokenizer": "words",
        "image_tokens": 4,
        "image_size": 8,
        "held_out": [0.2, 0.2],
    }
    mine = study(tmp_path, data)
    assert mine.spec.task == "answers"
    mine.run(progress=False)
    written = mine.report()
    facts = [label for _, label in dense_facts(written.summaries[0])]
    assert (
        "test answer accuracy (100.0% from the question alone, 66.7% by the most usual answer)"
        in facts
    )
    assert written.summaries[0]["warning"].startswith(
        "the dense network is no better than guessing from the question alone: test answer accuracy"
    )
    assert "100.0% of test answers are right from the question alone" in written.page.read_text()


@pytest.mark.slow
def test_it_goes_on_but_not_with_another_text(tmp_path: Path) -> None:
    data = of_text(tmp_path)
    study(tmp_path, data).score(progress=False)
    for file in (tmp_path / "data" / "tokenizers").iterdir():
        file.unlink()  # and is trained again, to the same
    results = study(tmp_path, data).run(progress=False)
    assert results.finished
    (tmp_path / "text.txt").write_text("".join(LINES).replace("stands", "sits"), "utf-8")
    with pytest.raises(InputError, match="the text or tokenizer of data set 'text' has changed"):
        study(tmp_path, data).run(progress=False)


def test_the_native_engine_refuses_it_with_the_reason(tmp_path: Path) -> None:
    prepared = study(tmp_path, of_text(tmp_path)).prepare()
    with pytest.raises(InputError, match="the native kernels train plain classification only"):
        check_engine("native", prepared.network, prepared.data, prepared.spec.retraining)


@pytest.mark.slow
def test_engines_that_train_it_agree(tmp_path: Path) -> None:
    found = {
        engine: study(
            tmp_path / engine, of_text(tmp_path, stride=8), overrides={"retraining.epochs": 2}
        )
        .run(progress=False, engine=engine)
        .outcomes["test_loss"]
        for engine in ("loop", "wide")
    }
    assert found["wide"].to_numpy() == pytest.approx(found["loop"].to_numpy(), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dense.flip": True}, r"dense\.flip needs images \[C, H, W\], got input_ids \[16\]"),
        ({"dense.shift": 1}, r"dense\.shift needs images \[C, H, W\], got input_ids \[16\]"),
        ({"retraining.mixup": 0.2}, r"retraining\.mixup needs classes, and task 'next-token' has"),
        ({"data.uint8": "scale"}, r"data\.uint8 = 'scale' does nothing for data set 'text'"),
        ({"task": "classification"}, "train split's targets are torch.int64 of shape"),
        ({"data.context": 100_000}, "has .* tokens, fewer than one example"),
        ({"task": "answers"}, "data set 'text' is text: expected task 'next-token'"),
    ],
)
def test_what_is_of_images_is_refused(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        study(tmp_path, of_text(tmp_path), overrides=overrides).prepare()
    assert "\n" not in str(caught.value)


def test_fields_of_text_do_nothing_for_images_and_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.context = 4 does nothing for images of classes"):
        Study("digits-conv1-0.2", overrides={"data.context": 4}, runs=tmp_path).prepare()


@pytest.mark.slow
def test_tokens_of_ones_own_through_the_real_package(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("transformers")
    own = tokenizer()
    parts = {
        part: datasets.Dataset.from_dict({"text": LINES[start:end]}).map(
            lambda row: own(row["text"]), remove_columns=["text"]
        )
        for part, start, end in (("train", 0, 150), ("test", 150, 200))
    }
    columns = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    mine = Study(
        name="hub",
        network=Tiny(400),
        data=datasets.DatasetDict(parts),
        columns=columns,
        task="next-token",
        pruning={"layers": {"hidden": 0.5}, "candidates": 2},
        retraining={"epochs": 1, "seeds": [0]},
        runs=tmp_path / "runs",
    )
    results = mine.run(progress=False)
    assert results.finished
    assert results.data_facts == {}
