"""The result for one of many files, as a line of JSON and as a row of a table."""

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
FAILED: Final = "failed"  # the server did not answer

_FIRST_COLUMNS: Final = ("path", "report", "status", "error", "kind")
_LAST_COLUMNS: Final = ("warnings", "fingerprint", "input_state")
COLUMNS: Final = (
    *_FIRST_COLUMNS,
    *(f"{key}{end}" for key in LABEL_KEYS for end in ("", "_decision")),
    *_LAST_COLUMNS,
)


@dataclass(frozen=True)
class PredictionRow:
    """The result for one file.

    Attributes:
        path: Path of the image, as the user gave it.
        status: "predicted", "refused" or "failed".
        fingerprint: Fingerprint of the model.
        input_state: Size and modification time of the files; see `CaseFile.read_state`.
        report: Path of the report; "" without one.
        error: One sentence; "" if the model answered.
        kind: "study" or "image"; "" without an answer.
        probabilities: (K,) calibrated, 0 to 1, in the order of `contract.labels`; empty without an answer.
        decisions: (K,) "present", "uncertain", "absent" or "undecided"; empty without an answer.
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
        """Return the fields, with the findings by key, and the notice that every answer has."""
        findings = {
            key: {"probability": probability, "decision": decision}
            for key, probability, decision in self.findings
        }
        return {
            **{name: getattr(self, name) for name in _FIRST_COLUMNS},
            "findings": findings,
            **{name: getattr(self, name) for name in _LAST_COLUMNS},
            "warnings": list(self.warnings),
            "notice": NOTICE,
        }

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON with a line end."""
        return json.dumps(self.to_dict(), ensure_ascii=False) + "\n"

    def to_record(self) -> dict[str, Any]:
        """Return the values by `COLUMNS`. Without an answer, those of the findings are None."""
        record: dict[str, Any] = dict.fromkeys(COLUMNS)
        record |= {name: getattr(self, name) for name in (*_FIRST_COLUMNS, *_LAST_COLUMNS)}
        for key, probability, decision in self.findings:
            record |= {key: probability, f"{key}_decision": decision}
        return record


def make_row(case: CaseFile, state: str, fingerprint: str, outcome: Prediction | CxrError) -> PredictionRow:
    """Return the row of a file.

    Args:
        case: The file.
        state: Its `CaseFile.read_state` before it was read.
        fingerprint: Fingerprint of the model that must answer.
        outcome: The prediction, or the error that the file or the server caused.
    """
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
    return PredictionRow(
        path=case.name,
        status=REFUSED if outcome.exit_code == 2 else FAILED,
        fingerprint=fingerprint,
        input_state=state,
        report=report,
        error=" ".join(str(outcome).split()),
    )


def parse_row(values: Mapping[str, Any]) -> PredictionRow:
    """Parse a row.

    Args:
        values: The result of `to_dict`, or of `to_record`. Numbers may be text, and None may be "".

    Raises:
        KeyError, TypeError, ValueError, AttributeError: The values are not those of a row.
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
    texts = {name: values[name] for name in (*_FIRST_COLUMNS, "fingerprint", "input_state")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("text")
    return PredictionRow(
        **texts,
        probabilities=tuple(float(probability) for probability, _ in pairs),
        decisions=tuple(str(decision) for _, decision in pairs),
        warnings=tuple(values["warnings"]),
    )
