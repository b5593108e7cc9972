"""Cases into the store: predicted a few at a time, stored in parts, what cannot be stored named and passed over."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from client.cases import CaseInput, IndexResult
from client.inputs import read_report
from client.many import require_series
from client.prediction import Prediction
from client.retrieval import Stored, StoredCase
from client.served import ServedModel
from contract.bundle import require_same_fingerprint
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
    """See `CxrClient.index`.

    Args:
        cases: Read as they are needed.
        model: The model at the start, which must make every embedding.
        predict: Predicts cases in their order, as `CxrClient.predict_many` does.
        add: Stores a part, all or none.
        progress: Called with the number of cases done.
    """
    parts = _Parts(add)
    warned: list[tuple[str, tuple[str, ...]]] = []
    for done, (case, outcome) in enumerate(predict(_read_reports(require_series(cases))), start=1):
        if isinstance(outcome, InputError):
            parts.refused.append((case.id, str(outcome)))
        else:
            require_unchanged(model.fingerprint, outcome.fingerprint)
            warned += [(case.id, outcome.input_warnings)] if outcome.input_warnings else []
            parts.put(_make_stored(case, outcome))
        if progress is not None:
            progress(done)
    parts.flush()
    refused = {case_id for case_id, _ in parts.refused}
    warned = [entry for entry in warned if entry[0] not in refused]
    return IndexResult(parts.added, parts.replaced, tuple(parts.refused), tuple(warned), model.trained_on)


class _Parts:
    """Stores cases in parts; of a part that the sidecar refuses, every case alone, so that it says which one it is."""

    def __init__(self, add: Add) -> None:
        self._add = add
        self._waiting: list[StoredCase] = []
        self.added = self.replaced = 0
        self.refused: list[tuple[str, str]] = []

    def put(self, case: StoredCase) -> None:
        self._waiting.append(case)
        if len(self._waiting) == _CASES_PER_REQUEST:
            self.flush()

    def flush(self) -> None:
        part, self._waiting = self._waiting, []
        if not part:
            return
        try:
            self._count(self._add(part))
        except InputError:
            for case in part:
                self._put_alone(case)

    def _put_alone(self, case: StoredCase) -> None:
        try:
            self._count(self._add([case]))
        except InputError as error:
            self.refused.append((case.id, str(error)))

    def _count(self, stored: Stored) -> None:
        self.added += stored.added
        self.replaced += stored.replaced


def require_unchanged(expected: str, found: str) -> None:
    """Raise FingerprintError where another model answers than the one that answered before."""
    require_same_fingerprint(
        expected, found, expected_from="the model at the start", found_from="the model that answered"
    )


def _read_reports(cases: Iterable[CaseInput]) -> Iterator[CaseInput]:
    """Yield the cases with the reports that are files read: what is predicted is what is stored."""
    for case in cases:
        if not isinstance(case, CaseInput) or case.report is None or isinstance(case.report, str):
            yield case
            continue
        try:
            yield replace(case, report=read_report(case.report))
        except InputError:
            yield case  # the prediction says the same


def _make_stored(case: CaseInput, prediction: Prediction) -> StoredCase:
    report = case.report or ""
    return StoredCase(
        id=case.id,
        study_id=case.study_id,
        embedding=prediction.embedding,
        labels=case.labels,
        report=report
        if isinstance(report, str)
        else read_report(report).decode("utf-8-sig", errors="replace"),
        image_ref=case.image_ref,
    )
