"""`cxr bench retrieval`: the vectors, the messages of the clients and, slowly, a whole small table."""

import json
import struct

import numpy as np
import pytest
from rich.console import Console

from bench.retrieval.clients import read_messages, start_clients
from bench.retrieval.sidecar import FILTER_LABEL, make_record, make_request
from bench.retrieval.table import PARTS, measure_retrieval
from bench.retrieval.vectors import STRUCTURES, draw_vectors
from contract.errors import ConfigError, ServerError
from contract.proto import retrieval_pb2


@pytest.mark.parametrize("structure", STRUCTURES)
def test_vectors_are_of_unit_length_and_the_same_every_time(structure):
    vectors = draw_vectors(structure, 300, 20, seed=3)
    assert (vectors.stored.shape, vectors.queries.shape) == ((300, 512), (20, 512))
    np.testing.assert_allclose(np.linalg.norm(vectors.stored, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors.stored, draw_vectors(structure, 300, 20, seed=3).stored)
    nearest = (vectors.queries @ vectors.stored.T).max(axis=1)
    assert nearest.mean() < 0.3 if structure == "random" else nearest.mean() > 0.5


def test_a_tenth_of_the_cases_has_the_label_of_the_filter():
    assert sum(FILTER_LABEL in make_record(number).labels for number in range(1000)) == 100
    request = make_request(np.ones(4, np.float32) / 2, 3, filtered=True)
    assert list(request.filter.labels_any) == [FILTER_LABEL]


def test_clients_read_the_messages_that_they_are_given(tmp_path):
    messages = [make_request(np.full(4, 0.5, np.float32), k).SerializeToString() for k in (1, 300)]
    (tmp_path / "file").write_bytes(b"".join(struct.pack("<I", len(entry)) + entry for entry in messages))
    read = [retrieval_pb2.SearchRequest.FromString(entry).k for entry in read_messages(tmp_path / "file")]
    assert read == [1, 300]


def test_clients_that_end_are_told(tmp_path, capfd):
    """Nothing listens at the address, so the first search fails and the process ends."""
    message = make_request(np.full(4, 0.5, np.float32), 1).SerializeToString()
    with (
        start_clients("127.0.0.1:1", [message], 1, tmp_path / "file") as clients,
        pytest.raises(ServerError, match="The clients ended with code 1"),
    ):
        clients.send(0.1)
    assert "UNAVAILABLE" in capfd.readouterr().err


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no part disk"):
        measure_retrieval(Console(quiet=True), tmp_path, cases=1000, seconds=1, runs=1, only=["disk"])


@pytest.mark.slow
def test_a_small_table_has_every_row_and_leaves_no_store(tmp_path):
    report = measure_retrieval(Console(quiet=True), tmp_path, cases=5000, seconds=0.6, runs=1)
    assert len(report["rows"]) == 3 * (len(PARTS) - 1) + 2
    assert all(row["value"] > 0 and all(row["conditions"].values()) for row in report["rows"])
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == report["rows"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.json", "table.md"]
