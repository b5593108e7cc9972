"""Several images of one study through the real Triton: as PyTorch fuses them, and how it refuses."""

import numpy as np
import pytest
import torch

from client import CaseInput, CxrClient
from contract.embedding import take_joint
from contract.errors import InputError, TensorError
from contract.image.png import encode_png
from contract.image.read import load_pixels
from contract.report.text import ReportTokenizer, read_report
from contract.steps import pack
from export.publish import publish
from serving.inprocess import InProcess
from serving.stack import Ports, Stack
from training.model.model import load_model

REPORT = "FINDINGS: The heart is enlarged. There is a left effusion."


@pytest.fixture(scope="module")
def model(make_model):
    """The smallest bundle that has every part, with random weights, and its graphs."""
    return make_model(1)


@pytest.fixture(scope="module")
def repository(model, tmp_path_factory):
    return publish(*model, tmp_path_factory.mktemp("views") / "repository")


@pytest.fixture(scope="module")
def client(repository, tmp_path_factory):
    place = tmp_path_factory.mktemp("stack")
    with Stack(repository, place / "store", ports=Ports.free(), log_dir=place / "logs") as stack:
        stack.wait_ready(120)
        with CxrClient(stack.triton_url, stack.retrieval_url, timeout_s=30) as client:
            yield client


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (4, 6, 6)).astype(np.uint8)
    return [encode_png(np.kron(squares, np.ones((12, 12), np.uint8))) for squares in coarse]


def answer_in_torch(bundle, images: list[bytes], report: str | None):
    """Return probabilities, joint embedding and image attention as training computes them for views of one study."""
    model, config = load_model(bundle).eval(), bundle.config
    pixels = [torch.from_numpy(load_pixels(data, size=config["sizes"]["S"])[None]) for data in images]
    with torch.inference_mode():
        first, *others = (model.image_encoder(view) for view in pixels)
        tokens = torch.cat([first, *(view + model.fusion.view for view in others)], dim=1)
        if report is None:
            out, kind = model.fusion(tokens, None, None), "image"
        else:
            text = read_report(report, config["text_mode"])
            read = ReportTokenizer.load(bundle.tokenizer_path).encode([text], config["max_length"])
            ids, mask = torch.from_numpy(read.input_ids), torch.from_numpy(read.attention_mask)
            out, kind = model.fusion(tokens, model.text_encoder(ids, mask), mask, input_ids=ids), "study"
        probabilities = model.fusion.calibrate(out.logits, kind)
    return probabilities[0].numpy(), out.embedding[0].numpy(), out.image_attention[0].numpy()


@pytest.mark.parametrize("report", [REPORT, None])
@pytest.mark.parametrize("count", [2, 4])
def test_images_are_answered_as_pytorch_answers_them(client, model, images, report, count):
    bundle, _ = model
    served = client.predict(images[:count], report)
    probabilities, embedding, attention = answer_in_torch(bundle, images[:count], report)
    found = [finding.probability for finding in served.findings]
    np.testing.assert_allclose(found, probabilities, atol=1e-4)
    np.testing.assert_allclose(served.image_attention, attention, atol=1e-4)
    assert float(take_joint(served.embedding, bundle.label_part) @ embedding) > 0.9999
    labels = served.embedding[-bundle.label_part :]
    np.testing.assert_allclose(labels / np.linalg.norm(labels), found / np.linalg.norm(found), atol=1e-5)
    alone = [client.predict(image, report) for image in images[:count]]
    assert np.abs(np.array(found) - [x.probability for x in alone[0].findings]).max() > 1e-3
    assert [image.lateral for image in served.images] == pytest.approx([x.lateral for x in alone], abs=1e-4)
    assert f"never on {count} together" in " ".join(served.warnings)
    assert not any("together" in sentence for sentence in alone[0].warnings)


def test_every_number_of_images_is_answered_alike_served_and_in_process(client, repository, images):
    in_process = InProcess(repository)
    for count in (1, 2, 3, 4):
        served = client.predict(images[:count], REPORT)
        files = np.array([images[:count]], dtype=np.object_)
        answer = in_process.run("predict_study", {"image_bytes": files, "report": pack([REPORT.encode()])})
        found = [finding.probability for finding in served.findings]
        np.testing.assert_allclose(found, answer["probabilities"][0], atol=1e-4)
        assert answer["lateral"].shape == answer["image_notes"].shape == (1, count)
        assert len(served.images) == count


def test_requests_with_other_numbers_of_images_do_not_mix(client, images):
    """Triton batches equal shapes alone; what waits beside a request changes nothing in its answer."""
    given = [images[:2], images[0], images[1::-1], images[1], images] * 3
    cases = [CaseInput(str(number), "s", image) for number, image in enumerate(given)]
    answers = [outcome for _, outcome in client.predict_many(cases)]
    for place, answer in enumerate(answers):
        np.testing.assert_allclose(answer.embedding, answers[place % 5].embedding, atol=1e-5)
        assert len(answer.images) == (len(given[place]) if isinstance(given[place], list) else 1)


def test_shared_memory_answers_alike(client, images):
    with CxrClient(client._tritons[0].url, transport="shared_memory", timeout_s=30) as other:
        for count in (1, 2, 2, 1, 4):
            found, expected = (one.predict(images[:count]) for one in (other, client))
            np.testing.assert_allclose(found.image_attention, expected.image_attention, atol=1e-5)


def test_bad_images_of_a_study_are_refused_by_name(client, images):
    with pytest.raises(InputError, match=r"preprocess_image: Image 2 of 2: The"):
        client.predict([images[0], b"MRN-4711 no image"])
    with pytest.raises(InputError, match=r"preprocess_study: Image 1 of 2: The") as told:
        client.predict([b"MRN-4711 no image", images[0]], REPORT)
    assert "4711" not in str(told.value)
    for count in (0, 5):
        files = np.full((1, count), images[0], dtype=np.object_)
        with pytest.raises(InputError):
            client._tritons[0].infer("predict_image", {"image_bytes": files}, ("probabilities",), 10)
    size = client.info().image_size
    with pytest.raises(TensorError, match="pixels must have shape"):
        client.predict_tensors(np.zeros((1, 2, size, size), np.uint8))
    assert client.predict_tensors(np.zeros((2, 1, size, size), np.uint8)).image_attention.shape[0] == 2
    assert client.predict(images[:2]).kind == "image"
