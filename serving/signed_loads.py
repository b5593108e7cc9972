"""Refuse a load into a running Triton unless the repository is signed.

`cxr serve --require-signature` checks the repository before Triton starts. An admin can load a new version later
(`cxr export --load`), and Triton knows no signatures. So the relay checks the whole repository before it passes a load
on: an ensemble may load its steps too. The hashes of 1.5 GB take about a second, for each of the models.
"""

from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from contract.errors import CxrError
from contract.repository import verify
from contract.signatures import OPTION, TrustedKeys

LOAD: Final = "/inference.GRPCInferenceService/RepositoryModelLoad"


class SignedLoads:
    """Decides about loads by the signature of the repository."""

    def __init__(self, repository: Path, trust: TrustedKeys) -> None:
        self._repository, self._trust = repository, trust

    def find_refusal(self, request: bytes) -> str | None:
        """Return why Triton must not load what a RepositoryModelLoad asks for; None: it may.

        Args:
            request: The serialized message.
        """
        try:
            parameters = service_pb2.RepositoryModelLoadRequest.FromString(request).parameters
        except DecodeError:
            return "The message is no RepositoryModelLoad."
        if parameters:
            return f"A load with its own config or files is not signed, and this server was started with {OPTION}."
        try:
            verify(self._repository, self._trust)
        except CxrError as error:
            return str(error)
        return None
