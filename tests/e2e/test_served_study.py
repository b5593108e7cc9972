"""The running stack: what it answers, and how it refuses."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.cases import make_cases
from client import AsyncCxrClient, CaseInput, CxrClient
from client.explain import explain
from client.triton import TritonTransport
from contract.errors import DeadlineError, FingerprintError, InputError, UnavailableError
from contract.image.png import encode_png
from contract.image.read import load_pixels
from contract.labels import LABEL_KEYS
from contract.notes import ImageNotes, warn_of_view
from contract.report.text import ReportTokenizer, read_report
from contract.shrink import is_worth_shrinking
from contract.steps import pack
from contract.tensors import MODELS
from contract.training_data import PHANTOM_WARNING
from serving.inprocess import InProcess
from training.data.rows import get_image, get_report
from training.model.model import load_model

LONG = "The heart is enlarged. " * 200  # 1,000 tokens


@pytest.fixture(scope="module")
def row(trained):
    rows = [row for row in trained.test_rows if row["image_paths"] and row["findings"]]
    return rows[0]


@pytest.fixture(scope="module")
def image(row) -> bytes:
    return get_image(row).read_bytes()


def test_prediction_of_every_kind(client, row, image):
    report = get_report(row)
    for kind, given in {
        "study": {"image": image, "report": report},
        "image": {"image": image},
        "text": {"report": report},
    }.items():
        prediction = client.predict(**given)
        assert prediction.kind == kind
        assert tuple(finding.key for finding in prediction.findings) == LABEL_KEYS
        assert all(0 <= finding.probability <= 1 for finding in prediction.findings)
        assert np.linalg.norm(prediction.embedding) == pytest.approx(1, abs=1e-4)
        assert (prediction.image_attention is None) == (kind == "text")
        assert (prediction.text_attention is None) == (kind == "image")


def test_served_answer_is_the_model_answer(client, trained, row, image):
    """Raw bytes through Triton = the same functions and the PyTorch model, called directly."""
    config = trained.bundle.config
    model = load_model(trained.bundle)
    text = read_report(get_report(row), config["text_mode"])
    tokens = ReportTokenizer.load(trained.bundle.tokenizer_path).encode([text], config["max_length"])
    pixels = load_pixels(image, size=config["sizes"]["S"])
    with torch.inference_mode():
        image_tokens = model.image_encoder(torch.from_numpy(pixels[None]))
        ids, mask = (torch.from_numpy(array) for array in (tokens.input_ids, tokens.attention_mask))
        text_tokens = model.text_encoder(ids, mask)
        probabilities, embedding, *_ = model.fusion.forward_study(image_tokens, text_tokens, ids, mask)
    served = client.predict(image, get_report(row))
    assert served.report_text == text
    np.testing.assert_allclose(
        [finding.probability for finding in served.findings], probabilities[0].numpy(), atol=1e-4
    )
    assert float(served.embedding @ embedding[0].numpy()) > 0.9999


def test_the_view_and_its_warnings_are_the_same_served_in_process_and_offline(client, trained, row):
    in_process = InProcess(trained.repository)
    paths = [Path(path) for path in row["image_paths"]]
    files = [path.read_bytes() for path in paths]
    bare = [encode_png(np.ascontiguousarray(load_pixels(data, size=256)[0])) for data in files]  # no header
    seen = []
    for data in (*files, *bare):
        own = in_process.run("predict_image", {"image_bytes": pack([data])})
        served, offline = client.predict(data), explain(trained.bundle, image=data, steps=1)
        lateral = float(own["lateral"][0, 0])
        assert served.lateral == pytest.approx(lateral, abs=1e-4)
        assert offline.lateral == pytest.approx(lateral, abs=1e-4)
        notes = ImageNotes.from_json(own["image_notes"][0, 0])
        assert served.image_notes == offline.image_notes == notes
        assert served.input_warnings == (*notes.warnings, *warn_of_view(notes, lateral))
        assert set(served.input_warnings) <= set(offline.warnings)
        assert client.predict(data, get_report(row)).lateral == pytest.approx(lateral, abs=1e-4)
        seen.append(lateral)
    assert len(set(seen)) > 1  # the head was fitted


async def predict_in_loop(stack, image, report) -> dict:
    async with AsyncCxrClient([stack.triton_url], timeout_s=30) as client:
        return (await client.predict(image, report)).to_dict()


def test_whole_files_and_pixels_that_the_client_read_get_one_answer(stack, client, trained, row, image):
    assert is_worth_shrinking(image, size=trained.bundle.config["sizes"]["S"])
    with CxrClient(stack.triton_url, timeout_s=30, shrink=False) as whole:
        expected = whole.predict(image, get_report(row))
    shrunk = client.predict(image, get_report(row))
    assert shrunk.to_dict() == expected.to_dict()
    assert asyncio.run(predict_in_loop(stack, image, get_report(row))) == expected.to_dict()
    np.testing.assert_array_equal(shrunk.embedding, expected.embedding)


def test_similar_cases(client, trained, image):
    known = next(row for row in trained.train_rows if row["image_paths"])
    data = get_image(known).read_bytes()
    hits = client.search(data, get_report(known), k=5)
    assert hits[0].study_id == known["study_id"]
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    others = client.search(data, get_report(known), k=5, exclude_studies=(known["study_id"],))
    assert known["study_id"] not in {hit.study_id for hit in others}
    assert len(client.search(image, k=3)) == 3
    assert len(client.search(report="Large pleural effusion.", k=4)) == 4


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.backend == "ensemble"])
def test_each_output_may_be_asked_for_alone(name, stack, trained, row, image):
    sizes = trained.bundle.config["sizes"]
    tokens = ReportTokenizer.load(trained.bundle.tokenizer_path).encode(["No effusion."], 64)
    given = {
        "image_bytes": np.array([[image]], dtype=np.object_),
        "report": np.array([[get_report(row).encode()]], dtype=np.object_),
        "pixels": load_pixels(image, size=sizes["S"])[None],
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
    }
    transport = TritonTransport(stack.triton_url)
    for output in MODELS[name].outputs:
        answer = transport.infer(name, given, (output.name,), 20)
        output.check(answer[output.name], sizes)
    transport.close()


BAD_INPUTS = {
    "truncated DICOM": ({"image": "truncated"}, "preprocess_image"),
    "PDF named .dcm": ({"image": b"%PDF-1.7\n" + b"0" * 500}, "preprocess_image"),
    "empty image": ({"image": b""}, "preprocess_image"),
    "empty report": ({"report": "   "}, "preprocess_text"),
    "report of 10,000 words": ({"report": "opacity " * 10_000}, "preprocess_text"),
    "broken XML": ({"report": "<eCitation><MedlineCitation>"}, "preprocess_text"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_names_the_step(client, image, name):
    given, step = BAD_INPUTS[name]
    if given.get("image") == "truncated":
        given = {"image": image[: len(image) // 2]}
    with pytest.raises(InputError) as caught:
        client.predict(**given)
    assert step in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_bad_requests_leave_their_neighbours_alone(client, image):
    """Good and bad requests at once, batched by the server: each gets its own answer."""
    expected = client.predict(image).embedding
    outcomes: dict[int, object] = {}

    def send(number: int) -> None:
        try:
            outcomes[number] = client.predict(image if number % 2 else image[:300]).embedding
        except InputError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=send, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, outcome in outcomes.items():
        if number % 2:
            np.testing.assert_allclose(outcome, expected, atol=1e-4)
        else:
            assert isinstance(outcome, InputError)
    assert len(outcomes) == 12


def test_wrong_port_and_short_deadline(stack, image):
    with (
        CxrClient("127.0.0.1:9", "127.0.0.1:9", timeout_s=2) as nowhere,
        pytest.raises(UnavailableError, match="cxr serve"),
    ):
        nowhere.predict(image)
    with CxrClient(stack.triton_url, stack.retrieval_url) as client, pytest.raises(DeadlineError):
        client.predict(image, timeout_s=0.001)


SEES_FRONTAL = "The model sees a frontal"  # the file that calls itself a lateral shows a frontal one
UNUSUAL = {
    "frontal": ({"image": "frontal"}, []),
    "lateral": ({"image": "lateral"}, ["lateral view", SEES_FRONTAL]),
    "hand": ({"image": "hand"}, ["HAND, not chest"]),
    "frames": ({"image": "frames"}, ["3 frames; only the first"]),
    "long report": ({"report": LONG}, ["longer than 256 tokens"]),
    "lateral with a long report": (
        {"image": "lateral", "report": LONG},
        ["lateral view", "longer than", SEES_FRONTAL],
    ),
    "frontal with a report": ({"image": "frontal", "report": "No effusion."}, []),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_served_with_a_warning(client, chest_files, name):
    given, words = UNUSUAL[name]
    given = {kind: chest_files.get(value, value) for kind, value in given.items()}
    prediction = client.predict(**given)
    assert tuple(finding.key for finding in prediction.findings) == LABEL_KEYS
    assert np.linalg.norm(prediction.embedding) == pytest.approx(1, abs=1e-4)
    assert prediction.warnings == (
        PHANTOM_WARNING,
        *prediction.input_warnings,
    )  # what this model was trained on
    assert len(prediction.input_warnings) == len(words)
    for sentence, expected in zip(prediction.input_warnings, words, strict=True):
        assert expected in sentence
    found = client.search(**given, k=2)
    assert len(found) == 2
    assert found.warnings == prediction.warnings


def test_an_unusual_image_is_read_as_a_usual_one_of_the_same_pixels(client, chest_files):
    """The warning is beside the answer, not in it; view and laterality are reported."""
    frontal = client.predict(chest_files["frontal"])
    assert (frontal.image_notes.view, frontal.image_notes.laterality) == ("PA", "U")
    assert frontal.image_notes.modality == "CR"
    for name in ("lateral", "hand", "frames"):
        other = client.predict(chest_files[name])
        assert float(other.embedding @ frontal.embedding) > 0.9999
    lateral = client.predict(chest_files["lateral"]).image_notes
    assert (lateral.view, lateral.laterality) == ("LATERAL", "L")


def test_indexing_tells_which_cases_have_a_warning(client, chest_files):
    cases = [CaseInput(name, "unusual", chest_files[name]) for name in ("frontal", "lateral", "hand")]
    try:
        result = client.index(cases)
    finally:
        client.delete([case.id for case in cases])
    assert result.indexed == 3
    assert [case_id for case_id, _ in result.warned] == ["lateral", "hand"]


def test_warnings_served_and_offline_are_the_same(client, trained, chest_files):
    given = {"image": chest_files["lateral"], "report": LONG}
    explanation = client.explain(trained.bundle, **given, steps=1)
    assert explanation.warnings == client.predict(**given).warnings


def test_cases_of_another_model_are_refused(client, trained, monkeypatch):
    prediction = client.predict(report="Normal chest.")
    with pytest.raises(FingerprintError):
        client.search_embedding(prediction.embedding, fingerprint="0" * 64)


def test_a_bad_case_is_reported_and_the_rest_is_indexed(client, trained):
    good = next(iter(make_cases(trained.train_rows[:1], "findings")))
    bad = type(good)(id="bad", study_id="bad", image=b"junk", report=None, labels=(), image_ref="")
    result = client.index([bad, good])
    assert result.indexed == 1
    assert [case_id for case_id, _ in result.refused] == ["bad"]


def test_logs_hold_no_report(stack: object, trained, client):
    client.predict(report="Zebrafish-shaped opacity.")
    logs = Path(stack.log_dir)
    text = "".join(path.read_text(errors="replace") for path in logs.glob("*.log"))
    assert text
    assert "Zebrafish" not in text
