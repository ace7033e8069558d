"""What is built once for all chunks arrives whole in another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.executors.work import small_study
from trueoracle.errors import InputError
from trueoracle.executors.base import Pickled, PickledFile, opened, pickled
from trueoracle.networks.weights import weights_sha256
from trueoracle.record.paths import DENSE
from trueoracle.record.store import Retrained
from trueoracle.run.chunks import Chunk, Shared, retrain_chunk
from trueoracle.run.dense import read_dense
from trueoracle.study import Study


def sent(study: Study) -> tuple[Shared, Chunk]:
    """What the chunks of a scored study share, and a chunk of two candidates."""
    results = study.score(progress=False, device="cpu")
    prepared = study.prepare("cpu")
    shared = Shared.of(prepared, read_dense(prepared, study.folder, results.dense or {}))
    members = tuple((0, name) for name in shared.candidates.ids[:2])
    chunk = Chunk(study.spec, study.folder / DENSE, members, "loop", shared.identity, device="cpu")
    return shared, chunk


def numbers(found: list[Retrained]) -> list[Any]:
    return [(one.candidate, one.seed, one.epochs, one.blocks) for one in found]


def check(study: Study, folder: Path) -> None:
    shared, chunk = sent(study)
    (folder / "shared").write_bytes(pickled(shared))
    wanted = retrain_chunk(chunk, shared)
    for parcel in (Pickled(pickled(shared)), PickledFile(folder / "shared")):
        arrived = opened(parcel)
        assert weights_sha256(arrived.dense) == weights_sha256(shared.dense)
        assert repr(numbers(retrain_chunk(chunk, parcel))) == repr(numbers(wanted))


def test_a_network_given_in_python(tmp_path: Path) -> None:
    check(small_study(tmp_path), tmp_path)


def test_a_network_by_name(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    tiny_fields["pruning"]["candidates"] = 2
    check(Study(**tiny_fields | {"criteria": ["l1"]}, runs=tmp_path), tmp_path)


@pytest.mark.slow
def test_a_network_of_transformers_and_its_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.run import test_transformers as hub

    folder = hub.folder.__wrapped__(tmp_path)  # type: ignore[attr-defined]
    check(hub.study(folder, layers={"model.layers.*.mlp.*": 0.5}, candidates=2), tmp_path)


def test_calls_are_parts_of_a_chunk(tmp_path: Path) -> None:
    """Networks trained in several calls end as in one."""
    shared, chunk = sent(small_study(tmp_path))
    one_by_one = Chunk(**{**vars(chunk), "together": 1})
    assert [len(one) for one in one_by_one.calls] == [1, 1]
    assert repr(numbers(retrain_chunk(one_by_one, shared))) == repr(
        numbers(retrain_chunk(chunk, shared))
    )


def test_another_study_than_the_drivers_is_refused(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    """As where a worker has other code or data."""
    tiny_fields["pruning"]["candidates"] = 2
    shared, chunk = sent(Study(**tiny_fields | {"criteria": ["l1"]}, runs=tmp_path))
    retrain_chunk(Chunk(**{**vars(chunk), "members": chunk.members[:1]}))  # built anew, and equal
    with pytest.raises(InputError, match="another study here than where it was started"):
        retrain_chunk(Chunk(**{**vars(chunk), "identity": "that of the driver"}), shared)


def test_a_worker_begins_without_scipy() -> None:
    """It is what criteria and statistics need, and takes a second to load."""
    code = "import sys, trueoracle.run.chunks; print('scipy.special' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
