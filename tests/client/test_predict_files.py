"""Predict many files: their order, unreadable files, and servers that fail for a moment or for good."""

from pathlib import Path

import numpy as np
import pytest
from fake_triton import in_steps

from client import CxrClient, Finding, Prediction
from client.case_files import CaseFile
from client.images import ReadImage
from client.predict_files import predict_files
from contract.errors import (
    BusyError,
    CancelledError,
    DeadlineError,
    FingerprintError,
    ImageError,
    ServerError,
    UnavailableError,
)
from contract.labels import LABELS
from contract.notes import ImageNotes

PRINT = "ab" * 32
FINDINGS = tuple(Finding(x.key, x.name, 0.25, 0.5) for x in LABELS)


class Model:
    """Stands for the predictor of a client: it answers, refuses or fails, depending on the content of the file."""

    def __init__(self, client: CxrClient, monkeypatch) -> None:
        self.asked: list[bytes] = []
        self.troubles: dict[bytes, list[Exception | None]] = {}
        self.fingerprint = PRINT
        self.pauses: list[float] = []
        self.client = client
        self.away: list[Exception] = []
        monkeypatch.setattr(client._predictor, "predict", in_steps(self.predict))
        monkeypatch.setattr(client, "info", self.info)

    def info(self, **_):
        if self.away:
            raise self.away.pop()

    def predict(self, image, report, *_):
        self.asked.append(image)
        troubles = self.troubles.get(image, [])
        if troubles and (trouble := troubles[0] if len(troubles) == 1 else troubles.pop(0)) is not None:
            raise trouble
        if image == b"no image":
            raise ImageError("The file is not a DICOM, PNG or JPEG image.")
        kind = "image" if report is None else "study"
        warned = ImageNotes(warnings=("The image is a lateral view.",) if image == b"lateral" else ())
        return Prediction(
            kind, FINDINGS, np.zeros(4, np.float32), self.fingerprint, images=(ReadImage(warned),)
        )

    def run(self, cases):
        return list(predict_files(self.client, cases, PRINT, sleep=self.pauses.append))


@pytest.fixture
def model(monkeypatch):
    with CxrClient("127.0.0.1:9") as client:
        yield Model(client, monkeypatch)


def make_cases(folder: Path, *contents: bytes | None) -> list[CaseFile]:
    cases = [CaseFile(folder / f"{place:03}.dcm") for place in range(len(contents))]
    for case, content in zip(cases, contents, strict=True):
        if content is not None:
            case.image.write_bytes(content)
    return cases


def test_one_row_each_in_the_order_of_the_files(model, tmp_path):
    contents = [
        None,
        b"no image",
        b"a",
        None,
        None,
        *[str(number).encode() for number in range(40)],
        b"lateral",
        None,
    ]
    cases = make_cases(tmp_path, *contents)
    (tmp_path / "r.txt").write_text("Normal.")
    cases[2] = CaseFile(cases[2].image, tmp_path / "r.txt")
    rows = model.run(cases)
    assert [row.path for row in rows] == [case.name for case in cases]
    statuses = ["refused" if content in {None, b"no image"} else "predicted" for content in contents]
    assert [row.status for row in rows] == statuses
    assert rows[0].error == "The image file cannot be read: No such file or directory."
    assert rows[1].error == "The file is not a DICOM, PNG or JPEG image."
    assert (rows[2].kind, rows[2].report) == ("study", str(tmp_path / "r.txt"))
    assert rows[2].input_state == cases[2].read_state()
    assert rows[2].findings[0] == (LABELS[0].key, 0.25, "absent")
    assert rows[-2].warnings == ("The image is a lateral view.",)
    assert {row.fingerprint for row in rows} == {PRINT}
    assert model.pauses == []


def test_only_files_that_cannot_be_read(model, tmp_path):
    assert [row.status for row in model.run(make_cases(tmp_path, None, None))] == ["refused"] * 2
    assert model.asked == []
    assert model.run([]) == []


@pytest.mark.parametrize(
    "error", [UnavailableError("away"), BusyError("busy"), DeadlineError("slow"), ServerError("no")]
)
def test_a_server_that_fails_for_a_moment_is_asked_again(model, tmp_path, error):
    cases = make_cases(tmp_path, b"a", None, b"b", b"c", b"d")
    model.troubles = {b"b": [error, error, None]}
    rows = model.run(cases)
    assert [row.status for row in rows] == ["predicted", "refused", *["predicted"] * 3]
    assert model.pauses == [0.5, 2.0]
    assert model.asked.count(b"a") == 1, "what was answered is not asked again"


def test_a_file_that_the_server_fails_on_is_a_row_and_the_rest_goes_on(model, tmp_path):
    cases = make_cases(tmp_path, b"a", None, b"b", b"c")
    model.troubles = {b"b": [DeadlineError("Triton did not answer within 5 s.")]}
    rows = model.run(cases)
    assert [row.status for row in rows] == ["predicted", "refused", "failed", "predicted"]
    assert rows[2].error == "Triton did not answer within 5 s."
    assert rows[2].path == cases[2].name


@pytest.mark.parametrize(
    ("error", "pauses", "failed"), [(UnavailableError("away"), 5, 0), (ServerError("no"), 6, 2)]
)
def test_a_server_that_is_gone_ends_the_run_behind_what_it_answered(model, tmp_path, error, pauses, failed):
    cases = make_cases(tmp_path, b"a", None, *[b"b"] * 9)
    model.troubles = {b"b": [error]}
    rows: list[str] = []
    outcomes = predict_files(model.client, cases, PRINT, sleep=model.pauses.append)
    with pytest.raises(type(error)):
        rows.extend(row.status for row in outcomes)
    assert rows == ["predicted", "refused", *["failed"] * failed]
    assert len(model.pauses) == pauses


def test_a_server_that_stops_and_starts_costs_no_file(model, tmp_path):
    """A Triton that stops first reports an unknown model, then ends requests, then does not answer."""
    stopping = [ServerError("no available versions"), CancelledError("cut off"), UnavailableError("away")]
    model.troubles = {b"b": [*stopping, UnavailableError("away"), None]}
    model.away = [ServerError("not ready")]
    rows = model.run(make_cases(tmp_path, b"a", b"b", b"c"))
    assert [row.status for row in rows] == ["predicted"] * 3
    assert model.pauses == [0.5, 2.0, 5.0, 10.0]


def test_another_model_under_way_ends_the_run(model, tmp_path):
    model.fingerprint = "cd" * 32
    with pytest.raises(FingerprintError, match="The answer was made by model"):
        model.run(make_cases(tmp_path, b"a"))


def test_an_early_end_leaves_no_thread(model, tmp_path):
    import threading

    rows = predict_files(model.client, make_cases(tmp_path, *[b"a"] * 50), PRINT)
    assert next(rows).status == "predicted"
    rows.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cxr-predict")]
    assert len(model.asked) < 50
