"""Requests to add cases, however their embeddings were encoded."""

import numpy as np
import pytest

import retrieval.packed
from client.retrieval import RetrievalTransport, StoredCase
from contract.errors import InputError
from contract.proto import retrieval_pb2
from retrieval.packed import parse_add_request

VALUES = [0.6, -0.8, 0.0]
FIELDS = {"study_id": "s", "labels": ["normal"], "report": "Réport.", "image_ref": "x", "view": "PA"}


def encode_values(values, tag: int) -> bytes:
    data = np.array(values, "<f4").tobytes()
    return bytes([tag, len(data)]) + data


def wrap(case: bytes) -> bytes:
    """The bytes of a request with one case."""
    return bytes([0x12, len(case)]) + case


def test_both_messages_have_the_same_bytes(make):
    plain = retrieval_pb2.AddCasesRequest(fingerprint=make.MODEL)
    packed = retrieval_pb2.PackedAddCasesRequest(fingerprint=make.MODEL)
    for number, vector in enumerate(make.vectors(3)):
        plain.cases.add(id=str(number), embedding=vector.tolist(), embedding_kind="study", **FIELDS)
        packed.cases.add(id=str(number), embedding=vector.tobytes(), embedding_kind="study", **FIELDS)
    assert plain.SerializeToString() == packed.SerializeToString()
    assert parse_add_request(plain.SerializeToString()) == packed


def test_what_most_encoders_write_is_parsed_once(monkeypatch):
    monkeypatch.setattr(retrieval.packed, "_pack", None)
    data = retrieval_pb2.AddCasesRequest(cases=[retrieval_pb2.Case(id="a", embedding=VALUES)])
    assert len(parse_add_request(data.SerializeToString()).cases[0].embedding) == 12
    assert parse_add_request(b"") == retrieval_pb2.PackedAddCasesRequest()


@pytest.mark.parametrize(
    "encoded",
    [
        b"".join(b"\x1d" + np.float32(value).tobytes() for value in VALUES),  # one by one
        encode_values(VALUES[:1], 0x1A) + encode_values(VALUES[1:], 0x1A),  # in two parts
    ],
    ids=["one by one", "in parts"],
)
def test_other_legal_encodings_mean_the_same(encoded):
    data = wrap(b"\x0a\x01a" + encoded + b"\x2a\x01r")
    assert retrieval_pb2.AddCasesRequest.FromString(data).cases[0].embedding == pytest.approx(VALUES)
    (case,) = parse_add_request(data).cases
    assert (case.id, case.report) == ("a", "r")
    assert np.frombuffer(case.embedding, "<f4").tolist() == pytest.approx(VALUES)


def test_old_and_new_clients_store_the_same(sidecar, make):
    vector = make.vectors(1)[0]
    sidecar.client.add([vector], ids=["old"])
    transport = RetrievalTransport(sidecar.server.address)
    transport.add(make.MODEL, [StoredCase("new", "s", vector, ("normal",), "Report.", "x")], 10)
    transport.close()
    hits = sidecar.client.search([vector], k=2)[0].hits
    assert [hit.case.id for hit in hits] == ["new", "old"]
    assert hits[0].score == hits[1].score
    (vectors,) = list(sidecar.store.read_vectors())
    assert vectors.embeddings[0].tobytes() == vectors.embeddings[1].tobytes()


def test_a_part_of_a_value_is_refused(sidecar, make, expect_status):
    call = sidecar.client.channel.unary_unary("/cxr.retrieval.v1.Retrieval/AddCases")
    case = retrieval_pb2.PackedCase(id="a", study_id="s", embedding=bytes(63))
    request = retrieval_pb2.PackedAddCasesRequest(fingerprint=make.MODEL, cases=[case])
    with expect_status("INVALID_ARGUMENT", "63 bytes"):
        call(request.SerializeToString(), timeout=10)


def test_a_case_that_mixes_encodings_is_read_as_the_plain_parser_reads_it():
    unpacked = b"\x1d" + np.float32(VALUES[2]).tobytes()
    data = wrap(b"\x0a\x01a" + encode_values(VALUES[:2], 0x1A) + unpacked)
    assert len(retrieval_pb2.AddCasesRequest.FromString(data).cases[0].embedding) == 3
    (case,) = parse_add_request(data).cases
    assert np.frombuffer(case.embedding, "<f4").tolist() == pytest.approx(VALUES)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (wrap(b"") * 1_000_000, "more than 4096 cases"),
        (b"\x08\x01" * 1_000_000, "more than 4096 cases"),  # unknown fields
        (wrap(b"\x0a\x01a\x1d" + bytes(4)) * 4097, "4097 cases; 1 to 4096"),  # values one by one
        (wrap(b"\x1d" + bytes(4)) + b"\x12\xc8\xdf\x02" + (b"\x1d" + bytes(4)) * 9000, "too many values"),
        (b"\x0b", "no AddCasesRequest"),
        (b"\xff" * 11, "no AddCasesRequest"),
        (b"\x12\x05abc", "no AddCasesRequest"),
    ],
    ids=["empty cases", "unknown fields", "one by one", "values", "group", "number", "short"],
)
def test_what_no_request_holds_is_refused_before_it_is_converted(data, words, monkeypatch):
    packed, convert = [], retrieval.packed._pack

    def pack(case, number):
        packed.append(number)
        return convert(case, number)

    monkeypatch.setattr(retrieval.packed, "_pack", pack)
    with pytest.raises(InputError, match=words):
        parse_add_request(data)
    assert len(packed) <= 2


@pytest.mark.parametrize("name", ["AddCases", "Search", "Backup"])
def test_garbage_is_an_invalid_argument_and_is_counted(sidecar, name, make, expect_status, capfd):
    path = f"/cxr.retrieval.v1.Retrieval/{name}"
    channel = sidecar.client.channel
    token = (("authorization", f"Bearer {make.ADMIN_TOKEN}"),)
    with expect_status("INVALID_ARGUMENT"):
        if name == "Backup":
            list(channel.unary_stream(path)(b"\xff", timeout=10, metadata=token))
        else:
            channel.unary_unary(path)(b"\xff", timeout=10, metadata=token)
    labels = {"rpc": name, "status": "INVALID_ARGUMENT"}
    assert sidecar.indexes.metrics.registry.get_sample_value("cxr_retrieval_requests_total", labels) == 1
    assert "Traceback" not in capfd.readouterr().err
