"""`cxr export verify`: check the answers of running Tritons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from contract.address import split_addresses
from contract.connection import PLAIN, Connection
from contract.errors import ArtifactError, CxrError, ParityError
from contract.runtime.session import read_parameter
from contract.training_data import WAYS

if TYPE_CHECKING:
    from export.gates.requests import Request
    from export.gates.server import Agreement, StoredAnswers


@dataclass(frozen=True)
class Verified:
    """The version that a server answered with, and the difference from its graphs' answers at the gates."""

    triton: str
    fingerprint: str
    version: int
    agreement: "Agreement"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        head = {"triton": self.triton, "fingerprint": self.fingerprint, "version": self.version}
        return {**head, **self.agreement.to_dict()}


@dataclass(frozen=True)
class VerifiedServers:
    """The results of several servers, in the order of the addresses.

    Attributes:
        verified: The servers that answered.
        errors: Address -> error of each server that did not.
    """

    verified: tuple[Verified, ...]
    errors: Mapping[str, CxrError]

    @property
    def versions(self) -> set[tuple[int, str]]:
        """Every (version, fingerprint) that a server answered with."""
        return {(server.version, server.fingerprint) for server in self.verified}

    @property
    def passed(self) -> bool:
        """Whether all servers answered, within the limits, with one version."""
        passed = all(server.agreement.passed for server in self.verified)
        return passed and not self.errors and len(self.versions) == 1

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON-ready values."""
        return {
            "passed": self.passed,
            "servers": [server.to_dict() for server in self.verified],
            "errors": {url: str(error) for url, error in self.errors.items()},
        }


def verify_servers(
    console: Console, addresses: Sequence[str], connection: Connection = PLAIN
) -> VerifiedServers:
    """Verify each server with `verify_server`. One that fails does not keep the others from being asked.

    Raises:
        ConfigError: One of several addresses is empty.
    """
    verified, errors = [], {}
    for url in split_addresses(addresses, "the address"):
        try:
            verified.append(verify_server(console, url, connection))
        except CxrError as error:  # noqa: PERF203 - each server is asked
            errors[url] = error
    return VerifiedServers(tuple(verified), errors)


def verify_server(console: Console, url: str, connection: Connection = PLAIN) -> Verified:
    """Send the random requests to a running Triton; compare the answers with those in its configs.

    `predict_*_tensors` take one image. So requests with several views go to the graphs of the same version, one after
    another. The result says whether the server passed.

    Raises:
        ArtifactError: The server does not serve a repository published by this version of `cxr export`.
        ConfigError: There is no Triton gRPC service at the address, or its backend does not honour the profile.
        ServiceError: The server does not answer.
    """
    from client.served import parse_model
    from contract.tensors import FUSED
    from export.gates.requests import Request, draw_requests
    from export.gates.server import STORED, StoredAnswers, collect_answers, compare_answers, run_request
    from serving.served_graphs import ServedGraphs, connect, find_version

    source = f"Triton at {url}"
    with connect(url, "the address", connection) as client, console.status(Text(f"Querying {source}")):
        served = ServedGraphs(client, url, find_version(client, url, "predict_study_tensors"))
        configs = {kind: served.read_config(f"predict_{kind}_tensors") for kind in WAYS}
        model = parse_model("predict_study_tensors", configs["study"], source=source)
        stored = StoredAnswers.read(
            {kind: read_parameter(config, STORED) for kind, config in configs.items()}, source=source
        )
        graph = _find_graph(configs["image"])
        layout = "fused" if graph in FUSED else "split"
        runtime = served.describe(graph)
        if model.vocabulary_size is None:
            raise ArtifactError(f"{source} does not state its vocabulary size. Publish the bundle again.")
        requests = draw_requests(model.image_size, model.vocabulary_size, model.max_length)
        asked = [request for request in requests if request.kind in stored.answers]
        _require_same_requests(stored, asked, source)

        def run(request: Request) -> Mapping[str, Any]:
            if request.views > 1:
                return run_request(served.ask, request, layout=layout)
            return served.ask(f"predict_{request.kind}_tensors", request.inputs)

        answers = collect_answers(run, asked)
    agreement = compare_answers(
        stored,
        answers,
        model.decisions,
        f"{runtime['runtime']} {runtime['provider']}",
        model.label_part,
    )
    return Verified(url, model.fingerprint, served.version, agreement)


def _require_same_requests(stored: "StoredAnswers", asked: "Sequence[Request]", source: str) -> None:
    """Raise ArtifactError if the stored answers are those to the requests of another version of this software."""
    for kind, rows in stored.answers.items():
        if len(rows) != sum(request.batch_size for request in asked if request.kind == kind):
            raise ArtifactError(
                f"{source} holds answers to the requests of another version of cxr. Publish the bundle again with "
                "`cxr export`."
            )


def _find_graph(config: Mapping[str, Any]) -> str:
    """Return the first graph among the steps of an ensemble."""
    from contract.tensors import FUSED, GRAPHS

    steps = [step["model_name"] for step in config["ensemble_scheduling"]["step"]]
    return next(str(name) for name in steps if name in GRAPHS or name in FUSED)


def require_passed(result: VerifiedServers) -> None:
    """Raise an error unless all servers answered as the graphs of one version did.

    Raises:
        CxrError: The error of the first server that could not be asked.
        ParityError: A measure of a server is beyond its limit, or two servers answer with different versions.
    """
    for error in result.errors.values():
        raise error
    for server in result.verified:
        if not server.agreement.passed:
            raise ParityError(
                f"Triton at {server.triton} does not answer as the graphs of version {server.version} did: "
                f"{server.agreement.failures[0]}."
            )
    if len(result.versions) > 1:
        found = ", ".join(
            f"{server.triton} version {server.version} ({server.fingerprint[:12]})"
            for server in result.verified
        )
        raise ParityError(
            f"The servers answer with different versions: {found}. `cxr export rollback` with all of them as --load "
            "brings them to one."
        )


def print_verified(console: Console, result: VerifiedServers) -> None:
    """Print the table of differences of each server, and the version that it answered with."""
    for server in result.verified:
        console.print(server.agreement.to_markdown(), highlight=False, markup=False, soft_wrap=True)
        console.print(
            f"Triton at {server.triton} answers with version {server.version} (model {server.fingerprint[:12]}).",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if len(result.errors) + len(result.verified) > 1:
        for error in result.errors.values():
            console.print(str(error), highlight=False, markup=False, soft_wrap=True)
