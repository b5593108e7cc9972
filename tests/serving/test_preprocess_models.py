"""The preprocessing steps in the real Triton give what `contract` gives, byte for byte."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest

from contract.tensors import MODELS
from serving.stack import Ports, Stack

grpc_client = pytest.importorskip("tritonclient.grpc")
image_module = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.e2e

TEMPLATES = Path(__file__).parents[2] / "model_repository"
SIZE = 32
MAX_LENGTH = 64
REPORTS = [
    "FINDINGS: The heart is enlarged. There is a left effusion. IMPRESSION: Effusion.",
    "The lungs are clear.",
    "<eCitation><MedlineCitation><Article><Abstract>"
    '<AbstractText Label="FINDINGS">Clear lungs &amp; a normal heart.</AbstractText>'
    "</Abstract></Article></MedlineCitation></eCitation>",
]


def write_parameters(config: Path, values: dict[str, str]) -> None:
    lines = [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()
    ]
    config.write_text(config.read_text() + "\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def repository(tmp_path_factory, mark_published):
    from contract.report.text import train_tokenizer

    root = tmp_path_factory.mktemp("preprocess")
    for name in ("preprocess_image", "preprocess_text"):
        shutil.copytree(TEMPLATES / name, root / name)
        (root / name / "1").mkdir()
        shutil.copy(TEMPLATES / "model.py", root / name / "1")
    write_parameters(root / "preprocess_image" / "config.pbtxt", {"image_size": str(SIZE)})
    write_parameters(
        root / "preprocess_text" / "config.pbtxt", {"text_mode": "findings", "max_length": str(MAX_LENGTH)}
    )
    train_tokenizer(REPORTS[:2] * 5, root / "preprocess_text" / "1" / "tokenizer.json", vocab_size=200)
    mark_published(root, "f" * 64)
    return root


@pytest.fixture(scope="module")
def client(repository, tmp_path_factory):
    pytest.importorskip("pytriton")
    place = tmp_path_factory.mktemp("stack")
    with Stack(repository, place / "store", ports=Ports.free(), log_dir=place / "logs") as stack:
        stack.wait_ready(60)
        client = grpc_client.InferenceServerClient(stack.triton_url)
        yield client
        client.close()


def infer(client, model, name, values, wanted=None):
    array = np.array([[value] for value in values], dtype=np.object_)
    tensor = grpc_client.InferInput(name, array.shape, "BYTES")
    tensor.set_data_from_numpy(array)
    outputs = None if wanted is None else [grpc_client.InferRequestedOutput(output) for output in wanted]
    answer = client.infer(model, [tensor], outputs=outputs)
    return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def draw_png(path: Path, seed: int, shape: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image_module.fromarray(pixels).save(path, format="PNG")
    return path.read_bytes()


def test_pixels_are_those_of_the_contract(client, tmp_path):
    from contract.image.read import load_pixels

    files = [draw_png(tmp_path / "a.png", 0, (90, 70)), draw_png(tmp_path / "b.png", 1, (64, 128))]
    pixels = infer(client, "preprocess_image", "image_bytes", files)["pixels"]
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 1, SIZE, SIZE)
    for data, served in zip(files, pixels, strict=True):
        assert served.tobytes() == load_pixels(data, size=SIZE).tobytes()


def test_tokens_are_those_of_the_contract(client, repository):
    from contract.report.text import ReportTokenizer, read_report

    served = infer(client, "preprocess_text", "report", [report.encode() for report in REPORTS])
    texts = [read_report(report, "findings") for report in REPORTS]
    tokenizer = ReportTokenizer.load(repository / "preprocess_text" / "1" / "tokenizer.json")
    tokens = tokenizer.encode(texts, MAX_LENGTH)
    assert served["input_ids"].dtype == np.int64
    assert served["input_ids"].tobytes() == tokens.input_ids.tobytes()
    assert served["attention_mask"].tobytes() == tokens.attention_mask.tobytes()
    assert served["token_spans"].dtype == np.int32
    assert served["token_spans"].tobytes() == tokens.spans.tobytes()
    assert [entry.decode() for entry in served["report_text"][:, 0]] == texts


def make_black_png() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (300, 300)).save(file, "PNG")
    return file.getvalue()


def test_image_notes_are_those_of_the_contract(client, chest_files):
    from contract.image.read import load_radiograph
    from contract.notes import ImageNotes, note_image

    files = [*chest_files.values(), make_black_png()]
    served = infer(client, "preprocess_image", "image_bytes", files)["image_notes"]
    notes = [ImageNotes.from_json(entry) for entry in served[:, 0]]
    assert notes == [note_image(load_radiograph(data, size=SIZE)) for data in files]
    assert [len(note.warnings) for note in notes] == [0, 1, 1, 1, 1]  # frontal, lateral, hand, frames, black
    assert [note.view for note in notes] == ["PA", "LATERAL", "PA", "PA", "UNKNOWN"]
    assert notes[-1].warnings == ("The image has hardly any contrast: no finding can be seen in it.",)


def test_report_notes_are_those_of_the_contract(client):
    from contract.notes import ReportNotes

    reports = [REPORTS[0].encode(), b"The heart is enlarged. " * 30]
    served = infer(client, "preprocess_text", "report", reports)
    notes = [ReportNotes.from_json(entry) for entry in served["report_notes"][:, 0]]
    assert [note.truncated for note in notes] == [False, True]
    assert [note.tokens for note in notes] == served["attention_mask"].sum(axis=1).tolist()
    assert [len(note.warnings) for note in notes] == [0, 1]
    assert f"longer than {MAX_LENGTH} tokens" in notes[1].warnings[0]


@pytest.mark.parametrize("name", ["preprocess_image", "preprocess_text"])
def test_any_output_comes_alone(client, chest_files, name):
    given = {
        "preprocess_image": ("image_bytes", [chest_files["frontal"]]),
        "preprocess_text": ("report", [b"Clear."]),
    }[name]
    whole = infer(client, name, *given)
    assert list(whole) == [output.name for output in MODELS[name].outputs]
    for output in whole:
        answer = infer(client, name, *given, wanted=[output])
        assert list(answer) == [output]
        np.testing.assert_array_equal(answer[output], whole[output])


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("preprocess_image", "image_bytes", b"MRN-4711 no image"),
        ("preprocess_image", "image_bytes", b""),
        ("preprocess_text", "report", b"  "),
        ("preprocess_text", "report", b"MRN-4711 \xff\xfe"),
        ("preprocess_text", "report", b"<eCitation>MRN-4711"),
    ],
)
def test_bad_input_is_an_invalid_argument_without_content(client, model, name, value):
    with pytest.raises(grpc_client.InferenceServerException) as info:
        infer(client, model, name, [value])
    assert info.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert info.value.message().startswith(f"{model}: ")
    assert "4711" not in info.value.message()
