"""Check whether Triton and the sidecar answer, and whether they belong to the same model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from client.deadline import Deadline
from client.exchange import make_inputs
from client.predictor import Predictor, ServedTriton
from client.retrieval_core import IndexInfo
from client.served import ServedModel
from client.short_text import shorten
from client.steps import Steps, ask
from client.transports import Retrieval
from contract.errors import BusyError, CxrError
from contract.probe_case import PROBE_IMAGE, PROBE_REPORT
from contract.training_data import UNKNOWN, warn_of_training


@dataclass(frozen=True)
class Health:
    """The state of both servers.

    Attributes:
        triton: None if Triton answers, else the error in one sentence.
        retrieval: None if the sidecar answers and belongs to Triton's model, else the error in one sentence.
        fingerprint: Fingerprint of the served model; None if Triton does not answer.
        cases: Number of cases in the index; None if the sidecar does not answer.
        trained_on: The collection that the served model was trained on; None if Triton does not answer.
        index: How the index searches, and what became of the kind that was asked for; None if the sidecar does not
            answer.
    """

    triton: str | None
    retrieval: str | None
    fingerprint: str | None = None
    cases: int | None = None
    trained_on: str | None = None
    index: str | None = None

    def __repr__(self) -> str:
        states = {
            name: "ready" if trouble is None else shorten(trouble)
            for name, trouble in (("triton", self.triton), ("retrieval", self.retrieval))
        }
        servers = ", ".join(f"{name}={state!r}" for name, state in states.items())
        return f"Health({servers}, cases={self.cases}, model={(self.fingerprint or '')[:12]!r})"

    @property
    def ready(self) -> bool:
        """Whether both servers answer and belong to the same model."""
        return self.triton is None and self.retrieval is None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt every answer of the served model; empty if Triton does not answer."""
        return warn_of_training(self.trained_on or UNKNOWN)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, `ready` and `warnings`."""
        return {**asdict(self), "ready": self.ready, "warnings": list(self.warnings)}


def check_health(retrievals: Sequence[Retrieval], predictor: Predictor, timeout_s: float) -> Steps[Health]:
    """Check all servers, in steps. An error of a server becomes a sentence of the result and is not raised.

    Args:
        retrievals: The sidecars.
        predictor: Sends real cases to each Triton, because a loaded model may be unable to infer.
        timeout_s: Deadline of all questions to one server, in seconds.
    """
    errors: list[str] = []
    models: dict[str, ServedModel] = {}  # address -> model
    for server in predictor.servers:
        error, model = yield from _check_triton(server, timeout_s)
        errors += [error] if error else []
        models |= {server.triton.url: model} if model else {}
    model = next(iter(models.values()), None)
    errors += _describe_different_models(models)
    fingerprint, trained_on = (model.fingerprint, model.trained_on) if model else (None, None)
    index_errors: list[str] = []
    cases: int | None = None
    described: str | None = None
    for retrieval in retrievals:
        try:
            index = yield from ask(retrieval.read_info, timeout_s, fingerprint or "")
        except CxrError as failure:
            index_errors.append(str(failure))
            continue
        index_errors += _describe_index_error(index, fingerprint)
        cases = index.case_count if cases is None else min(cases, index.case_count)
        described = described or index.describe()
    return Health(
        " ".join(errors) or None, " ".join(index_errors) or None, fingerprint, cases, trained_on, described
    )


def _check_triton(server: ServedTriton, timeout_s: float) -> Steps[tuple[str | None, ServedModel | None]]:
    """Return what is wrong with one Triton, in one sentence, and the model that it serves."""
    deadline = Deadline(timeout_s)
    trouble = yield from ask(server.triton.check_ready, timeout_s)
    if trouble is not None:
        return trouble, None
    model = None
    try:
        model = yield from server.models.read_latest(deadline.left())
        for image, report in ((PROBE_IMAGE, PROBE_REPORT), (PROBE_IMAGE, None), (None, PROBE_REPORT)):
            yield from server.predict(*make_inputs(image, report), deadline, None)
    except BusyError:
        pass  # the server works: its queue is full
    except CxrError as error:
        return str(error), model
    return None, model


def _describe_different_models(models: dict[str, ServedModel]) -> list[str]:
    """Return a sentence that names two servers with different models, if there are such."""
    if not models:
        return []
    (first, one), *others = models.items()
    for url, other in others:
        if other.fingerprint != one.fingerprint:
            return [
                f"Triton at {first} serves model {one.fingerprint[:12]}, but Triton at {url} serves model "
                f"{other.fingerprint[:12]}: each answer is read with the model that made it, but `index` needs one."
            ]
    return []


def _describe_index_error(index: IndexInfo, fingerprint: str | None) -> list[str]:
    """Return what is wrong with the index of the served model, in one sentence, if anything is."""
    if fingerprint and index.fingerprint and index.fingerprint != fingerprint:
        return [
            f"The index belongs to model {index.fingerprint[:12]}, but Triton serves model {fingerprint[:12]}: run "
            "`cxr index TABLE`, which makes an index of the served model beside the other one."
        ]
    if index.damaged_count:
        return [
            f"{index.damaged_count} cases of the index are damaged and a search does not return them: index them "
            "again with `cxr index TABLE` (the sidecar's log names the rows)."
        ]
    return []
