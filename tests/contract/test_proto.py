"""The generated stubs belong to retrieval.proto."""

import re
from pathlib import Path

import pytest

retrieval_pb2 = pytest.importorskip("contract.proto.retrieval_pb2")
FIELD = re.compile(r"(repeated )?(\w+) (\w+) = (\d+);")
TYPES = {"string": 9, "float": 2, "uint32": 13, "uint64": 4, "bool": 8, "bytes": 12, "double": 1}
REPEATED = 3


@pytest.fixture(scope="module")
def source() -> str:
    text = Path(retrieval_pb2.__file__).with_name("retrieval.proto").read_text()
    return re.sub(r"//.*", "", text)


def read_messages(source: str) -> dict[str, list[tuple[str, int, str, bool]]]:
    return {
        name: [
            (field, int(number), kind, bool(repeated))
            for repeated, kind, field, number in FIELD.findall(body)
        ]
        for name, body in re.findall(r"message (\w+) \{(.*?)\}", source, re.DOTALL)
    }


def describe(field) -> tuple[str, int, str, bool]:
    names = {number: name for name, number in TYPES.items()}
    kind = field.message_type.name if field.message_type else names[field.type]
    return field.name, field.number, kind, is_repeated(field)


def is_repeated(field) -> bool:
    proto = type(retrieval_pb2.DESCRIPTOR).__name__ and retrieval_pb2.DESCRIPTOR
    copy = __import__("google.protobuf.descriptor_pb2").protobuf.descriptor_pb2.FileDescriptorProto()
    proto.CopyToProto(copy)
    message = next(entry for entry in copy.message_type if entry.name == field.containing_type.name)
    return next(entry for entry in message.field if entry.name == field.name).label == REPEATED


def test_messages_and_fields(source):
    descriptors = retrieval_pb2.DESCRIPTOR.message_types_by_name
    generated = {name: [describe(field) for field in entry.fields] for name, entry in descriptors.items()}
    assert generated == read_messages(source)
    assert sum(map(len, generated.values())) == source.count(" = ") - 1  # but for the line of the syntax


def test_package_and_methods(source):
    assert f"package {retrieval_pb2.DESCRIPTOR.package};" in source
    service = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"]
    generated = [(method.name, method.input_type.name, method.output_type.name) for method in service.methods]
    assert generated == re.findall(r"rpc (\w+)\((\w+)\) returns \((?:stream )?(\w+)\);", source)


def test_grpc_stubs_hold_every_method(source):
    grpc = pytest.importorskip("grpc")
    stubs = pytest.importorskip("contract.proto.retrieval_pb2_grpc")
    methods = re.findall(r"rpc (\w+)", source)
    with grpc.insecure_channel("localhost:1") as channel:
        stub = stubs.RetrievalStub(channel)
        assert all(callable(getattr(stub, name)) for name in methods)
    public = {name for name in vars(stubs.RetrievalServicer) if not name.startswith("_")}
    assert public == set(methods)


def test_type_stubs_name_every_field(source):
    text = Path(retrieval_pb2.__file__).with_suffix(".pyi").read_text()
    for name, fields in read_messages(source).items():
        body = text.split(f"class {name}(")[1].split("\nclass ")[0]
        assert re.findall(r"^    ([a-z]\w*): ", body, re.MULTILINE) == [field for field, *_ in fields]


def test_a_message_survives_the_wire():
    case = retrieval_pb2.Case(id="1", study_id="CXR1", embedding=[0.5, -1.0], labels=["normal"], report="x")
    hit = retrieval_pb2.Hit(case=case, score=0.25)
    response = retrieval_pb2.SearchResponse(results=[retrieval_pb2.Hits(hits=[hit])])
    assert retrieval_pb2.SearchResponse.FromString(response.SerializeToString()) == response
