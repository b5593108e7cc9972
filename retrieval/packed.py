"""Read the cases of an AddCasesRequest with each embedding as one field of bytes.

`PackedAddCasesRequest` has the same bytes on the wire, so a caller sends either, and an older sidecar reads both.
"""

from typing import Any

import grpc
import numpy as np

from contract.proto import retrieval_pb2
from retrieval.service import SERVICE_NAME


def make_packed_handler(service: Any) -> Any:
    """Return gRPC's handler for AddCases, whose requests are `PackedAddCasesRequest`."""
    method = grpc.unary_unary_rpc_method_handler(
        service.AddCases,
        request_deserializer=parse_add_request,
        response_serializer=retrieval_pb2.AddCasesResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE_NAME, {"AddCases": method})


def parse_add_request(data: bytes) -> Any:
    """Return a `PackedAddCasesRequest` from the bytes of an AddCasesRequest. ValueError: they are none."""
    request = retrieval_pb2.PackedAddCasesRequest.FromString(data)
    # An encoder may write the values one by one, which are unknown fields of a PackedCase, or in several parts, of
    # which a PackedCase keeps the last one and becomes shorter.
    if all(case.embedding for case in request.cases) and request.ByteSize() == len(data):
        return request
    plain = retrieval_pb2.AddCasesRequest.FromString(data)
    return retrieval_pb2.PackedAddCasesRequest(
        fingerprint=plain.fingerprint, cases=[_pack(case) for case in plain.cases]
    )


def _pack(case: Any) -> Any:
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
