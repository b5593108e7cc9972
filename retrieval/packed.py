"""Read the cases of an AddCasesRequest with each embedding as one field of bytes.

`PackedAddCasesRequest` has the same bytes on the wire, so a caller sends either, and an older sidecar reads both.
"""

from typing import Any, Final

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from contract.errors import InputError
from contract.labels import LABEL_INDEX
from contract.proto import retrieval_pb2
from retrieval.requests import MAX_CASES, MAX_DIMENSION
from retrieval.service import SERVICE_NAME

_MOST_FIELDS: Final = MAX_CASES + 16  # the cases, the fingerprint, and some that a later version may add
_BROKEN: Final = "The message is no AddCasesRequest."
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # types of fields on the wire


def make_packed_handler(service: Any) -> Any:
    """Return gRPC's handler for AddCases, whose requests are `PackedAddCasesRequest`."""
    method = grpc.unary_unary_rpc_method_handler(
        service.AddCases,
        request_deserializer=parse_add_request,
        response_serializer=retrieval_pb2.AddCasesResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE_NAME, {"AddCases": method})


def parse_add_request(data: bytes) -> Any:
    """Return a `PackedAddCasesRequest` from the bytes of an AddCasesRequest.

    Raises:
        InputError: They are none, or they hold more than one request may. This is found before much memory is used.
    """
    _require_few_fields(data)
    try:
        request = retrieval_pb2.PackedAddCasesRequest.FromString(data)
        # An encoder may write the values one by one, which are unknown fields of a PackedCase, or in several parts, of
        # which a PackedCase keeps the last one. Both make the message shorter.
        request.DiscardUnknownFields()
        if request.ByteSize() == len(data):
            return request
        plain = retrieval_pb2.AddCasesRequest.FromString(data)
    except DecodeError as error:
        raise InputError(_BROKEN) from error
    if len(plain.cases) > MAX_CASES:
        raise InputError(f"The request holds {len(plain.cases)} cases; 1 to {MAX_CASES} are allowed.")
    return retrieval_pb2.PackedAddCasesRequest(
        fingerprint=plain.fingerprint,
        cases=[_pack(case, number) for number, case in enumerate(plain.cases, 1)],
    )


def _pack(case: Any, number: int) -> Any:
    if len(case.embedding) > MAX_DIMENSION or len(case.labels) > len(LABEL_INDEX):
        raise InputError(f"Case {number}: it has too many values or labels.")
    return retrieval_pb2.PackedCase(
        id=case.id,
        study_id=case.study_id,
        embedding=np.array(case.embedding, dtype="<f4").tobytes(),
        labels=case.labels,
        report=case.report,
        image_ref=case.image_ref,
        view=case.view,
        embedding_kind=case.embedding_kind,
    )


def _require_few_fields(data: bytes) -> None:
    """Raise InputError if a message has more fields than a request may have. An empty case takes two bytes here, and
    a hundred when it is parsed.
    """
    place, count = 0, 0
    while place < len(data):
        if count == _MOST_FIELDS:
            raise InputError(f"The request holds more than {MAX_CASES} cases.")
        count += 1
        tag, place = _read_varint(data, place)
        kind = tag & 7
        if kind == _VARINT:
            _, place = _read_varint(data, place)
        elif kind == _BYTES:
            size, place = _read_varint(data, place)
            place += size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            place += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise InputError(_BROKEN)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a number of at most ten bytes, and the place after it."""
    value = 0
    for shift, byte in enumerate(data[place : place + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, place + shift + 1
    raise InputError(_BROKEN)
