"""Store the embeddings of many cases in the index. A case that is refused is reported, and the others are stored."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from client.cases import CaseInput, IndexResult
from client.inputs import ReportSource, read_report
from client.many import require_series
from client.prediction import Prediction
from client.retrieval import Stored, StoredCase
from client.served import ServedModel, require_unchanged
from contract.errors import InputError

Outcomes = Iterable[tuple[CaseInput, Prediction | InputError]]
Predict = Callable[[Iterable[CaseInput]], Outcomes]
Add = Callable[[Sequence[StoredCase]], Stored]

_CASES_PER_REQUEST: Final = 64


def index_cases(
    cases: Iterable[CaseInput],
    model: ServedModel,
    *,
    predict: Predict,
    add: Add,
    progress: Callable[[int], None] | None = None,
) -> IndexResult:
    """Predict cases and store their embeddings; see `CxrClient.index`.

    Args:
        cases: The cases.
        model: The model that must make every embedding.
        predict: Predicts cases in their order, as `CxrClient.predict_many` does.
        add: Stores all of the given cases, or none.
        progress: Called with the number of finished cases.

    Raises:
        FingerprintError: Another model made an embedding.
    """
    writer = _Writer(add)
    warned: list[tuple[str, tuple[str, ...]]] = []
    for done, (case, outcome) in enumerate(predict(_read_reports(require_series(cases))), start=1):
        if isinstance(outcome, InputError):
            writer.refused.append((case.id, str(outcome)))
        else:
            require_unchanged(model.fingerprint, outcome.fingerprint)
            if outcome.input_warnings:
                warned.append((case.id, outcome.input_warnings))
            writer.put(_make_stored_case(case, outcome))
        if progress is not None:
            progress(done)
    writer.flush()
    refused = {case_id for case_id, _ in writer.refused}
    return IndexResult(
        added=writer.added,
        replaced=writer.replaced,
        refused=tuple(writer.refused),
        warned=tuple(entry for entry in warned if entry[0] not in refused),
        trained_on=model.trained_on,
    )


class _Writer:
    """Stores cases in groups. If the sidecar refuses a group, each of its cases is stored alone."""

    def __init__(self, add: Add) -> None:
        self._add = add
        self._waiting: list[StoredCase] = []
        self.added = self.replaced = 0
        self.refused: list[tuple[str, str]] = []

    def put(self, case: StoredCase) -> None:
        """Add a case to the group, and store the group if it is full."""
        self._waiting.append(case)
        if len(self._waiting) == _CASES_PER_REQUEST:
            self.flush()

    def flush(self) -> None:
        """Store the cases of the group."""
        group, self._waiting = self._waiting, []
        if not group:
            return
        try:
            self._store(group)
        except InputError:
            for case in group:
                self._store_alone(case)

    def _store_alone(self, case: StoredCase) -> None:
        try:
            self._store([case])
        except InputError as error:
            self.refused.append((case.id, str(error)))

    def _store(self, cases: Sequence[StoredCase]) -> None:
        stored = self._add(cases)
        self.added += stored.added
        self.replaced += stored.replaced


def _read_reports(cases: Iterable[CaseInput]) -> Iterator[CaseInput]:
    """Yield the cases with the content of their report files, so that the predicted text is also the stored text."""
    for case in cases:
        if not isinstance(case, CaseInput) or case.report is None or isinstance(case.report, str):
            yield case
            continue
        try:
            yield replace(case, report=read_report(case.report))
        except InputError:
            yield case  # the prediction will raise the same error


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
