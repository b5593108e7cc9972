"""Check whether Triton and the sidecar answer, and whether they belong to the same model."""

from dataclasses import asdict, dataclass
from typing import Any

from client.deadline import Deadline
from client.predictor import Predictor
from client.retrieval import IndexInfo, RetrievalTransport
from client.short_text import shorten
from client.triton import TritonTransport
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


def check_health(
    triton: TritonTransport, retrieval: RetrievalTransport, predictor: Predictor, timeout_s: float
) -> Health:
    """Check both servers. An error of a server becomes a sentence of the result and is not raised.

    Args:
        triton: Triton.
        retrieval: The sidecar.
        predictor: Sends real cases to Triton, because a loaded model may be unable to infer.
        timeout_s: Deadline of each request, in seconds.
    """
    triton_error, model = triton.check_ready(timeout_s), None
    if triton_error is None:
        try:
            model = predictor.models.read_latest(timeout_s)
            for image, report in ((PROBE_IMAGE, PROBE_REPORT), (PROBE_IMAGE, None), (None, PROBE_REPORT)):
                predictor.predict(image, report, Deadline(timeout_s))
        except BusyError:
            pass  # the server works: its queue is full
        except CxrError as error:
            triton_error = str(error)
    fingerprint, trained_on = (model.fingerprint, model.trained_on) if model else (None, None)
    try:
        index = retrieval.read_info(timeout_s, fingerprint or "")
    except CxrError as error:
        return Health(triton_error, str(error), fingerprint, trained_on=trained_on)
    index_error = _describe_index_error(index, fingerprint)
    return Health(triton_error, index_error, fingerprint, index.case_count, trained_on, index.describe())


def _describe_index_error(index: IndexInfo, fingerprint: str | None) -> str | None:
    """Return what is wrong with the index of the served model, in one sentence."""
    if fingerprint and index.fingerprint and index.fingerprint != fingerprint:
        return (
            f"The index belongs to model {index.fingerprint[:12]}, but Triton serves model {fingerprint[:12]}: run "
            "`cxr index TABLE`, which makes an index of the served model beside the other one."
        )
    if index.damaged_count:
        return (
            f"{index.damaged_count} cases of the index are damaged and a search does not return them: index them "
            "again with `cxr index TABLE` (the sidecar's log names the rows)."
        )
    return None
