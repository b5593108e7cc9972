"""`cxr export verify` checks the answers of a running Triton. `cxr export retire` removes a version."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from contract.connection import PLAIN, Connection
from contract.errors import ArtifactError, ConfigError, ParityError
from contract.runtime.session import read_parameter
from contract.training_data import WAYS

if TYPE_CHECKING:
    from contract.repository import Published
    from export.gates.server import Agreement
    from export.signing import SigningKey
    from serving.reload import Reload


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
class Retired:
    """The removed version, the version that answers, and what a running server loaded."""

    published: "Published"
    version: int
    loaded: "Reload | None"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        values = {
            "repository": str(self.published.repository),
            "retired": self.version,
            "version": self.published.version,
            "fingerprint": self.published.fingerprint,
        }
        return {**values, "loaded": self.loaded.to_dict()} if self.loaded else values


def verify_server(console: Console, url: str, connection: Connection = PLAIN) -> Verified:
    """Send the random requests to the ensembles of a running Triton; compare the answers with those in its configs.

    The result says whether the server passed.

    Raises:
        ArtifactError: The server does not serve a repository published by this version of `cxr export`.
        ConfigError: There is no Triton gRPC service at the address, or its backend does not honour the profile.
        ServiceError: The server does not answer.
    """
    from client.served import parse_model
    from export.gates.requests import draw_requests
    from export.gates.server import STORED, StoredAnswers, collect_answers, compare_answers
    from serving.served_graphs import ServedGraphs, connect, find_version

    source = f"Triton at {url}"
    with connect(url, "the address", connection) as client, console.status(Text(f"Querying {source}")):
        served = ServedGraphs(client, url, find_version(client, url, "predict_study_tensors"))
        configs = {kind: served.read_config(f"predict_{kind}_tensors") for kind in WAYS}
        model = parse_model("predict_study_tensors", configs["study"], source=source)
        stored = StoredAnswers.read(
            {kind: read_parameter(config, STORED) for kind, config in configs.items()}, source=source
        )
        runtime = served.describe(_find_graph(configs["image"]))
        if model.vocabulary_size is None:
            raise ArtifactError(f"{source} does not state its vocabulary size. Publish the bundle again.")
        requests = draw_requests(model.image_size, model.vocabulary_size, model.max_length)
        answers = collect_answers(
            lambda request: served.ask(f"predict_{request.kind}_tensors", request.inputs),
            [request for request in requests if request.kind in stored.answers],
        )
    agreement = compare_answers(
        stored,
        answers,
        model.decisions,
        f"{runtime['runtime']} {runtime['provider']}",
        model.label_part,
    )
    return Verified(url, model.fingerprint, served.version, agreement)


def _find_graph(config: Mapping[str, Any]) -> str:
    """Return the first graph among the steps of an ensemble."""
    from contract.tensors import FUSED, GRAPHS

    steps = [step["model_name"] for step in config["ensemble_scheduling"]["step"]]
    return next(str(name) for name in steps if name in GRAPHS or name in FUSED)


def require_passed(verified: Verified) -> None:
    """Raise ParityError with the first measure beyond its limit, unless the server passed."""
    if not verified.agreement.passed:
        raise ParityError(
            f"Triton at {verified.triton} does not answer as the graphs of version {verified.version} did: "
            f"{verified.agreement.failures[0]}."
        )


def retire_version(
    console: Console,
    repository: Path,
    *,
    version: int | None,
    load: str | None,
    admin_key: Path,
    connection: Connection = PLAIN,
    key: "SigningKey | None" = None,
) -> Retired:
    """Remove the version that does not answer. The running server unloads it first. `key` signs the repository.

    Raises:
        ConfigError: The version does not exist, or it answers, here or at the server; or the admin key is missing.
        ServiceError: The running server did not unload it. The version is kept.
    """
    from export.versions import retire

    if load is None:
        published, gone = retire(repository, version, key=key)
        return Retired(published, gone, None)
    reloads: list[Reload] = []
    published, gone = retire(
        repository,
        version,
        partial(_unload, console, repository, load, admin_key, connection, reloads),
        key=key,
    )
    return Retired(published, gone, reloads[0])


def _unload(
    console: Console,
    repository: Path,
    url: str,
    admin_key: Path,
    connection: Connection,
    reloads: "list[Reload]",
) -> None:
    """Let the server reload the repository, if it answers with the version that is kept."""
    from contract.repository import read_published
    from serving.reload import check_server, reload_models
    from serving.triton import read_admin_key

    key = read_admin_key(admin_key)
    if check_server(url, repository, key, connection) != read_published(repository).version:
        raise ConfigError(
            f"Triton at {url} answers with another version than {repository} states. First run `cxr export rollback "
            f"{repository} --to VERSION --load {url}`."
        )
    with console.status(Text(f"Unloading from Triton at {url}")):
        reloads.append(reload_models(url, repository, key, connection=connection))


def print_verified(console: Console, verified: Verified) -> None:
    """Print the table of differences, and the version that was verified."""
    console.print(verified.agreement.to_markdown(), highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"Triton at {verified.triton} answers with version {verified.version} (model {verified.fingerprint[:12]}).",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def print_retired(console: Console, result: Retired) -> None:
    """Print the removed version and the version that answers."""
    console.print(
        f"Version {result.version} of {result.published.repository} was removed; version {result.published.version} "
        f"(model {result.published.fingerprint[:12]}) answers.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if result.loaded:
        console.print("Triton unloads the removed version.", highlight=False)
