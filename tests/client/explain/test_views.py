"""Explanations of each image of a study that the model reads together."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.errors import ConfigError
from contract.image.read import load_pixels
from contract.labels import LABEL_INDEX, LABELS

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

from client.explain import explain_findings, explain_views  # noqa: E402
from client.explain.dicom.write import write_dicom  # noqa: E402
from client.explain.map_files import write_maps  # noqa: E402
from client.explain.maps import encode_png  # noqa: E402
from training.model.model import graph_modules, load_model  # noqa: E402

REPORT = "The heart is enlarged. There is a small left effusion."
METHODS = ["integrated_gradients", "grad_cam", "occlusion", "attention", "rollout"]


@pytest.fixture(scope="module")
def bundle(write_bundle, small_config, tmp_path_factory: pytest.TempPathFactory):
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "small",
        small_config,
        seed=5,
        texts=[REPORT],
        thresholds=[0.45] * len(LABELS),
    )


def draw(row: int, column: int, width: int) -> bytes:
    rows, columns = np.mgrid[0:120, 0:width]
    picture = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 500)
    return encode_png((255 * picture).astype(np.uint8))


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [draw(40, 60, 90), draw(80, 30, 110)]


@pytest.fixture(scope="module")
def found(bundle, images):
    return explain_views(bundle, images, labels=["cardiac"], methods=METHODS, steps=48)


def test_the_model_reads_all_images_together(bundle, images, found):
    """The probability is that of the served graphs, and not that of one image."""
    graphs = graph_modules(load_model(bundle))
    pixels = np.concatenate([load_pixels(image, size=56) for image in images])[None]  # (1, V, S, S)
    with torch.no_grad():
        tokens = graphs["image_encoder"](torch.from_numpy(pixels))
        served, _, attention, _ = graphs["fusion_image"](tokens)
    index = LABEL_INDEX["cardiac"]
    assert [(one.view, one.views) for one in found] == [(1, 2), (2, 2)]
    for place, one in enumerate(found):
        assert one.probability == pytest.approx(float(served[0, index]), abs=1e-5)
        part = attention[0, index, place * 49 : (place + 1) * 49].numpy()
        np.testing.assert_allclose(one.patch_attention.ravel(), part, atol=1e-6)
        np.testing.assert_allclose(one.maps[3].values.ravel(), part, atol=1e-6)
    alone = explain_findings(bundle, image=images[0], labels=["cardiac"], methods=["attention"], steps=4)
    assert abs(alone[0].probability - found[0].probability) > 1e-4


def test_the_other_images_stay_as_they_are(found):
    """The sum of a map is what its own image adds to the logit of the study."""
    first, second = found
    assert first.logit == pytest.approx(second.logit, abs=1e-5)
    assert first.baseline_logit != pytest.approx(second.baseline_logit, abs=1e-5)
    for one in found:
        total = float(one.pixel_attribution.sum(dtype=np.float64))
        assert total == pytest.approx(one.logit - one.baseline_logit, abs=0.01)
    assert sum(one.patch_attention.sum() for one in found) == pytest.approx(1, abs=1e-5)
    for one, two in zip(first.maps, second.maps, strict=True):
        assert np.isfinite(one.values).all()
        assert np.abs(one.values - two.values).max() > 0


def test_each_image_has_files_of_its_own(found, tmp_path):
    written = write_maps(found, tmp_path)
    names = {path.name for path in written}
    assert {"cardiac-attention-view1.png", "cardiac-attention-view2.png", "maps.npz"} <= names
    with np.load(tmp_path / "maps.npz") as arrays:
        assert {"cardiac/attention/view2", "frame/view1", "frame/view2"} <= set(arrays)
        assert arrays["frame/view2"][1] == 110


def test_wrong_images(bundle, images, found, tmp_path):
    for wrong in (images[:1], images * 3):
        with pytest.raises(ConfigError, match="2 to 4 images of a study"):
            explain_views(bundle, wrong)
    with pytest.raises(ConfigError, match="explain_views"):
        explain_findings(bundle, image=images)
    with pytest.raises(ConfigError, match="of one image"):
        write_dicom(found, images[0], tmp_path)


def test_the_command_takes_further_images(bundle, images, tmp_path):
    for name, data in zip(("a.png", "b.png"), images, strict=True):
        (tmp_path / name).write_bytes(data)
    line = ["explain", str(tmp_path / "a.png"), "--bundle", str(bundle.path), "--steps", "4", "--json"]
    further = ["--further", str(tmp_path / "b.png"), "--out", str(tmp_path / "why.png")]
    told = CliRunner().invoke(app, [*line, *further, "--finding", "cardiac", "--method", "attention"])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    assert [answer["view"], answer["further"][0]["view"], answer["views"]] == [1, 2, 2]
    assert (tmp_path / "why.png").is_file()
    refused = CliRunner().invoke(app, [*line, *further, "--hit", "1", "--table", str(tmp_path / "table")])
    assert refused.exit_code == 2
    assert "--further needs an image" in " ".join(refused.output.split())
