from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trueoracle
from trueoracle.errors import InputError
from trueoracle.tasks.metric import (
    ACCURACY,
    CLASSIFICATION,
    LOSS,
    Metric,
    check_metrics,
    columns_of,
    headline,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "mIoU"}, "a metric's name is 'mIoU', expected"),
        ({"name": "a b); DROP TABLE scores"}, "a metric's name is"),
        ({"name": ""}, "a metric's name is ''"),
        ({"name": 3}, "a metric's name is 3"),
        ({"label": " "}, "label is empty"),
        ({"label": "two\nlines"}, "label is 'two"),
        ({"unit": None}, "unit is None"),
        ({"better": "more"}, "better is 'more', expected 'lower' or 'higher'"),
        ({"low": 1.0, "high": 0.0}, "from 1.0 to 0.0"),
        ({"low": math.nan}, "from nan to inf"),
    ],
)
def test_what_could_not_be_recorded_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        Metric(**{"name": "iou", "label": "IoU", **fields})


def test_a_task_has_a_loss_and_distinct_names() -> None:
    assert check_metrics([LOSS, ACCURACY]) == CLASSIFICATION
    for wrong, message in (
        ([], "has 0 metrics"),
        ([ACCURACY], "first metric of a task is its loss"),
        ([LOSS, LOSS], "two metrics named 'loss'"),
    ):
        with pytest.raises(InputError, match=message):
            check_metrics(wrong)


def test_columns_are_split_by_split() -> None:
    assert columns_of(CLASSIFICATION) == (
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "test_loss",
        "test_accuracy",
    )
    assert (headline(CLASSIFICATION), headline((LOSS,))) == (ACCURACY, LOSS)
    assert ACCURACY.is_share
    assert not LOSS.is_share


def test_metrics_and_records_need_no_torch() -> None:
    code = (
        "import sys, trueoracle.tasks.metric, trueoracle.record.runs, trueoracle.record.verify;"
        "import trueoracle.report.page, trueoracle.report.grid; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ROOT = Path(trueoracle.__file__).parent
BEHIND_THE_RECORD = [
    path
    for pattern in ("analysis/*", "figures/*", "report/**/*", "record/*", "search/[rs][ect]*")
    for path in ROOT.glob(pattern)
    if path.suffix in (".py", ".html", ".css") and path.name != "search.py"
]


@pytest.mark.parametrize("path", BEHIND_THE_RECORD, ids=lambda path: path.name)
def test_behind_the_record_nobody_knows_a_task(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # Python's own word, a picture's type in a page, how a browser draws one, a field of the study,
    # and a fact of older runs.
    for known in (
        "dataclass", "data:image/", "image-rendering", "data.validation_images",
        '_CLASSES = "classes"',
    ):  # fmt: skip
        text = text.replace(known, "")
    found = re.findall(r".*(?:accuracy|classes|image).*", text)
    assert found == []
