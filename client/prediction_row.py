"""The result of one of many files: what is written for it as a line of JSON or as a row of a table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from client.case_files import CaseFile, to_text
from client.prediction import Prediction
from contract.errors import CxrError
from contract.labels import LABEL_KEYS
from contract.notes import NOTICE

PREDICTED: Final = "predicted"
REFUSED: Final = "refused"  # the file cannot be used
FAILED: Final = "failed"  # the server could not answer

_BEFORE: Final = ("path", "report", "status", "error", "kind")
_BEHIND: Final = ("warnings", "fingerprint", "input_state")
COLUMNS: Final = (*_BEFORE, *(f"{key}{end}" for key in LABEL_KEYS for end in ("", "_decision")), *_BEHIND)


@dataclass(frozen=True)
class PredictionRow:
    """What became of one file.

    Attributes:
        path: Of the image, as it was given.
        status: "predicted", "refused" or "failed".
        fingerprint: Of the model that was asked.
        input_state: Size and time of change of the files, as of `CaseFile.read_state`.
        report: Path of the report; empty without one.
        error: One sentence; empty where the model answered.
        kind: "study" or "image"; empty without an answer.
        probabilities: (K,) calibrated, 0 to 1, in the order of `contract.labels`; empty without an answer.
        decisions: (K,) "present", "uncertain", "absent" or "undecided"; likewise.
        warnings: One sentence each.
    """

    path: str
    status: str
    fingerprint: str
    input_state: str
    report: str = ""
    error: str = ""
    kind: str = ""
    probabilities: tuple[float, ...] = ()
    decisions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[tuple[str, float, str], ...]:
        """(key, probability, decision) of each label; empty without an answer."""
        keys = LABEL_KEYS if self.probabilities else ()
        return tuple(zip(keys, self.probabilities, self.decisions, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields with the findings by their keys, and the notice that belongs to every answer."""
        findings = {
            key: {"probability": probability, "decision": decision}
            for key, probability, decision in self.findings
        }
        head = {name: getattr(self, name) for name in _BEFORE}
        return {
            **head,
            "findings": findings,
            **{name: getattr(self, name) for name in _BEHIND},
            "warnings": list(self.warnings),
            "notice": NOTICE,
        }

    def to_json(self) -> str:
        """Return the fields as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False) + "\n"

    def to_record(self) -> dict[str, Any]:
        """Return the fields as the columns of a table; those of the findings are None without an answer."""
        record: dict[str, Any] = dict.fromkeys(COLUMNS)
        record |= {name: getattr(self, name) for name in (*_BEFORE, *_BEHIND)}
        for key, probability, decision in self.findings:
            record |= {key: probability, f"{key}_decision": decision}
        return record


def make_row(case: CaseFile, state: str, fingerprint: str, outcome: Prediction | CxrError) -> PredictionRow:
    """Return the row of a file and of what the model, or the reading of the file, came to."""
    report = "" if case.report is None else to_text(case.report)
    if isinstance(outcome, Prediction):
        return PredictionRow(
            path=case.name,
            status=PREDICTED,
            fingerprint=outcome.fingerprint,
            input_state=state,
            report=report,
            kind=outcome.kind,
            probabilities=tuple(round(float(finding.probability), 6) for finding in outcome.findings),
            decisions=tuple(finding.decision for finding in outcome.findings),
            warnings=outcome.warnings,
        )
    status = REFUSED if outcome.exit_code == 2 else FAILED
    return PredictionRow(case.name, status, fingerprint, state, report, " ".join(str(outcome).split()))


def parse_row(values: Mapping[str, Any]) -> PredictionRow:
    """Return the row of what `to_dict` made, or `to_record` (with text for numbers, and "" for None).

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It was made by something else.
    """
    if "findings" in values:
        findings = {key: values["findings"][key] for key in LABEL_KEYS if values["findings"]}
        pairs = [(entry["probability"], entry["decision"]) for entry in findings.values()]
    else:
        pairs = [(values[key], values[f"{key}_decision"]) for key in LABEL_KEYS]
        pairs = [pair for pair in pairs if pair[0] not in {None, ""}]
    if values["status"] not in {PREDICTED, REFUSED, FAILED}:
        raise ValueError(values["status"])
    if len(pairs) != (len(LABEL_KEYS) if values["status"] == PREDICTED else 0):
        raise ValueError("findings")
    texts = {name: values[name] for name in (*_BEFORE, "fingerprint", "input_state")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("text")
    return PredictionRow(
        **texts,
        probabilities=tuple(float(probability) for probability, _ in pairs),
        decisions=tuple(str(decision) for _, decision in pairs),
        warnings=tuple(values["warnings"]),
    )
