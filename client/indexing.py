"""Store the embeddings of many cases in the index. A case that is refused is reported, and the others are stored."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from client.cases import CaseInput, IndexResult
from client.inputs import ReportSource, read_report
from client.many import Outcome
from client.prediction import Prediction
from client.retrieval_core import Stored, StoredCase
from client.served import ServedModel, require_unchanged
from client.steps import Steps, ask
from contract.errors import CancelledError, InputError, ServiceError

Embedded = tuple[CaseInput, Outcome]  # a case with the content of its report, and its prediction
Take = Callable[[], Embedded | Awaitable[Embedded | None] | None]
Add = Callable[[Sequence[StoredCase]], Steps[Stored]]

_CASES_PER_REQUEST: Final = 64


def index_cases(
    take: Take,
    model: ServedModel,
    *,
    add: Add,
    progress: Callable[[int], None] | None = None,
    keep_going: bool = False,
) -> Steps[IndexResult]:
    """Store the embeddings of predicted cases, in steps; see `CxrClient.index`.

    Args:
        take: Returns the next case and its outcome; None after the last one.
        model: The model that must make every embedding.
        add: Stores all of the given cases, or none.
        progress: Called with the number of finished cases.
        keep_going: Whether a failure to store cases is part of the result.

    Raises:
        FingerprintError: Another model made an embedding.
        ServiceError: The sidecar failed.
    """
    writer = _Writer(add, keep_going)
    warned: list[tuple[str, tuple[str, ...]]] = []
    done = 0
    while (embedded := (yield from ask(take))) is not None:
        case, outcome = embedded
        if isinstance(outcome, InputError):
            writer.refused.append((case.id, str(outcome)))
        elif isinstance(outcome, ServiceError):
            writer.failed.append((case.id, str(outcome)))
        else:
            require_unchanged(model.fingerprint, outcome.fingerprint)
            if outcome.input_warnings:
                warned.append((case.id, outcome.input_warnings))
            yield from writer.put(_make_stored_case(case, outcome))
        done += 1
        if progress is not None:
            progress(done)
    yield from writer.flush()
    missing = {case_id for case_id, _ in (*writer.refused, *writer.failed)}
    return IndexResult(
        added=writer.added,
        replaced=writer.replaced,
        refused=tuple(writer.refused),
        failed=tuple(writer.failed),
        warned=tuple(entry for entry in warned if entry[0] not in missing),
        trained_on=model.trained_on,
    )


class _Writer:
    """Stores cases in groups. If the sidecar refuses a group, each of its cases is stored alone."""

    def __init__(self, add: Add, keep_going: bool) -> None:
        self._add = add
        self._keep_going = keep_going
        self._waiting: list[StoredCase] = []
        self.added = self.replaced = 0
        self.refused: list[tuple[str, str]] = []
        self.failed: list[tuple[str, str]] = []

    def put(self, case: StoredCase) -> Steps[None]:
        """Add a case to the group, and store the group if it is full."""
        self._waiting.append(case)
        if len(self._waiting) == _CASES_PER_REQUEST:
            yield from self.flush()

    def flush(self) -> Steps[None]:
        """Store the cases of the group."""
        group, self._waiting = self._waiting, []
        if not group:
            return
        try:
            yield from self._store(group)
        except InputError:
            for case in group:
                yield from self._store_alone(case)

    def _store_alone(self, case: StoredCase) -> Steps[None]:
        try:
            yield from self._store([case])
        except InputError as error:
            self.refused.append((case.id, str(error)))

    def _store(self, cases: Sequence[StoredCase]) -> Steps[None]:
        try:
            stored = yield from self._add(cases)
        except ServiceError as error:
            if not self._keep_going or isinstance(error, CancelledError):  # the client was closed
                raise
            self.failed += [(case.id, str(error)) for case in cases]  # the sidecar may have stored them
            return
        self.added += stored.added
        self.replaced += stored.replaced


def keep_report(case: CaseInput) -> CaseInput:
    """Return the case with the content of its report file, so that the predicted text is also the stored text."""
    if case.report is None or isinstance(case.report, str):
        return case
    try:
        return replace(case, report=read_report(case.report))
    except InputError:
        return case  # the prediction will raise the same error


def _make_stored_case(case: CaseInput, prediction: Prediction) -> StoredCase:
    notes = prediction.image_notes
    return StoredCase(
        id=case.id,
        study_id=case.study_id,
        embedding=prediction.embedding,
        labels=case.labels,
        report=decode_report(case.report),
        image_ref=case.image_ref,
        view="" if notes is None else notes.view,
        embedding_kind=prediction.kind,
    )


def decode_report(report: ReportSource | None) -> str:
    """Return the text of a report, or the content of its file as text; "" without one."""
    if report is None or isinstance(report, str):
        return report or ""
    return read_report(report).decode("utf-8-sig", errors="replace")
