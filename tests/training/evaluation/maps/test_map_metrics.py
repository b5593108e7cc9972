"""The single measures of maps. Each must tell a good map from the bug that it guards against."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

from torch import nn  # noqa: E402

from contract.errors import InputError  # noqa: E402
from contract.image.frame import Frame  # noqa: E402
from contract.image.read import load_pixels  # noqa: E402
from contract.labels import LABEL_NAMES  # noqa: E402
from training.evaluation.maps.agreement import compare_maps, find_top_hits  # noqa: E402
from training.evaluation.maps.boxes import FindingBox, read_boxes, read_table_boxes  # noqa: E402
from training.evaluation.maps.controls import draw_centre, draw_random  # noqa: E402
from training.evaluation.maps.faithful import (  # noqa: E402
    measure_curves,
    measure_infidelity,
    measure_sensitivity,
)
from training.evaluation.maps.gate import pass_gate  # noqa: E402
from training.evaluation.maps.localise import choose_top, localise  # noqa: E402
from training.evaluation.maps.measure import Sizes, Task, measure_maps  # noqa: E402
from training.evaluation.maps.report import write_map_report  # noqa: E402
from training.evaluation.maps.sanity import cascade, compare_findings, compare_inputs  # noqa: E402
from training.evaluation.maps.ssim import compare_structure, compute_ssim  # noqa: E402
from training.evaluation.maps.subject import Map, MethodFacts, Subject  # noqa: E402
from training.evaluation.maps.twin import make_twin  # noqa: E402

SIZE = 28


class Case(SimpleNamespace):
    def _replace(self, **changes):
        return Case(**{**vars(self), **changes})


def make_subject(box=(16.0, 4.0, 24.0, 12.0), pixels=None) -> Subject:
    if pixels is None:
        pixels = np.random.default_rng(0).uniform(60, 200, (SIZE, SIZE)).astype(np.float32)
    case = Case(pixels=torch.from_numpy(pixels)[None, None], input_ids=None, attention_mask=None)
    return Subject("1", "1", 13, case, Frame.fit(SIZE, SIZE, SIZE), (box,), Path("chest.dcm"))


def weigh_box(subject: Subject):
    """A logit that is the sum of the pixels in the box, and nothing else."""
    weights = torch.from_numpy(subject.draw_boxes()).float()
    return lambda pixels: (pixels[:, 0] * weights).sum((1, 2)) / 100


def make_map(values) -> Map:
    values = np.asarray(values, np.float32)
    return Map(values, values, 0.0)


def test_localisation_of_a_right_a_wrong_and_an_empty_map():
    box = make_subject().draw_boxes()
    assert box.sum() == 64
    assert localise(box.astype(np.float32), box) == {"pointing": 1, "energy": 1, "iou": 1}
    assert localise(1 - box.astype(np.float32), box) == {"pointing": 0, "energy": 0, "iou": 0}
    assert localise(np.zeros((SIZE, SIZE), np.float32), box) == {"pointing": 0, "energy": 0, "iou": 0}
    flat = localise(np.ones((SIZE, SIZE), np.float32), box)
    assert flat["pointing"] == flat["energy"] == pytest.approx(64 / SIZE**2)  # of equal pixels, their share
    half = np.zeros((SIZE, SIZE), np.float32)
    half[4:12, 12:20] = 1  # shares half of the box
    assert localise(half, box) == {"pointing": 0.5, "energy": 0.5, "iou": pytest.approx(32 / 96)}
    assert choose_top(half, 5).sum() == 5


def test_ssim_is_that_of_a_known_library():
    metrics = pytest.importorskip("torchmetrics.functional.image")
    generator = np.random.default_rng(0)
    one = generator.random((56, 56)).astype(np.float32)
    two = np.clip(one + generator.normal(0, 0.2, one.shape), 0, 1).astype(np.float32)
    tensors = (torch.from_numpy(values)[None, None] for values in (one, two))
    expected = metrics.structural_similarity_index_measure(*tensors, data_range=1.0)
    assert compute_ssim(one, two) == pytest.approx(float(expected), abs=1e-4)
    assert compute_ssim(one, one) == pytest.approx(1)


def test_controls_stay_in_the_radiograph_and_know_its_centre():
    frame = Frame.fit(60, 30, SIZE)
    centre = draw_centre(frame)
    row, column = np.unravel_index(centre.argmax(), centre.shape)
    assert (row, column) == pytest.approx((SIZE / 2, SIZE / 2), abs=1)
    one, two = (draw_random(frame, np.random.default_rng(seed)) for seed in (0, 1))
    for values in (centre, one):
        assert not values[:, : frame.left].any()
        assert values[:, frame.left : frame.left + frame.width].all()
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] < 0.9


def test_deletion_and_insertion_prefer_the_map_that_the_model_uses():
    subject = make_subject()
    compute, box = weigh_box(subject), subject.draw_boxes().astype(np.float32)
    bright = (
        subject.inputs.pixels[0, 0].numpy() + 200 * box
    )  # brighter than grey, so that taking it away lowers the logit
    subject = make_subject(pixels=np.clip(bright, 0, 255).astype(np.float32))
    right, wrong = (measure_curves(compute, subject, strength) for strength in (box, 1 - box))
    assert right["deletion"] < wrong["deletion"] - 1
    assert right["insertion"] > wrong["insertion"] + 1


def test_deletion_takes_away_only_the_radiograph():
    """Black padding must not count as pixels that can be taken away."""
    subject = make_subject()
    wide = Subject("1", "1", 13, subject.inputs, Frame.fit(14, 28, SIZE), subject.boxes, subject.image)
    seen = []

    def compute(pixels):
        seen.append(pixels.clone())
        return pixels.mean((1, 2, 3))

    measure_curves(compute, wide, np.ones((SIZE, SIZE), np.float32))
    deleted, inserted = seen
    assert deleted.shape[0] == 17
    for pixels in seen:
        assert torch.equal(pixels[:, :, :7], wide.inputs.pixels[:, :, :7].expand(17, -1, -1, -1))
    assert torch.equal(deleted[0], wide.inputs.pixels[0])
    assert torch.equal(inserted[-1], wide.inputs.pixels[0])
    assert deleted[-1][0, 7:21].std() < 1e-3  # all of it is grey at the end
    assert torch.equal(deleted[-1], inserted[0])


def test_infidelity_of_a_map_that_predicts_the_logit():
    subject = make_subject(box=(16.0, 4.0, 20.0, 8.0))  # one of the squares
    compute = weigh_box(subject)
    box = subject.draw_boxes()
    assert measure_infidelity(compute, subject, make_map(box)) < 0.05
    assert measure_infidelity(compute, subject, make_map(np.roll(box, 12, 0))) > 0.5


def test_sensitivity_sees_a_map_that_jumps():
    subject = make_subject()

    def follow(_model, inputs, _label, _key):
        return make_map(inputs.pixels[0, 0].numpy())

    def jump(_model, inputs, _label, _key):
        seed = int(inputs.pixels.sum() * 1000) % 2**31
        return make_map(np.random.default_rng(seed).random((SIZE, SIZE)))

    calm, wild = (measure_sensitivity(None, subject, one, "any") for one in (follow, jump))
    assert calm < 0.05
    assert wild > 0.5


class Model(nn.Module):
    """A model in the shape of the real one, as far as its layers are listed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image_encoder = nn.Module()
        self.image_encoder.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 5, padding=2)
        )
        self.image_encoder.project = nn.Conv2d(4, 4, 1)
        self.fusion = nn.Module()
        self.fusion.pooling = nn.Conv2d(4, 22, 1)
        self.fusion.blocks, self.fusion.norm = nn.ModuleList(), nn.ModuleDict()


def make_real_map(model, inputs, label, _key):
    encoder = model.image_encoder
    with torch.no_grad():
        found = model.fusion.pooling(encoder.project(encoder.backbone(inputs.pixels / 255)))[0, label]
    values = (found - found.min()) / (found.max() - found.min())
    return make_map(values.numpy())


def make_edge_map(_model, inputs, _label, _key):
    """The bug: a map of the edges of the picture, which no weight changes."""
    return make_map(np.abs(np.gradient(inputs.pixels[0, 0].numpy() / 255)[0]))


def test_random_weights_destroy_a_map_that_depends_on_them():
    model, subjects = Model(), [make_subject()]
    before = [value.clone() for value in model.state_dict().values()]
    names, real = cascade(model, subjects, make_real_map, "real")
    _, edges = cascade(model, subjects, make_edge_map, "edges")
    assert names == ["pooling", "projection", "encoder 2", "encoder 1"]
    assert real.shape == (1, 4)
    assert real[0, -1] < 0.5
    np.testing.assert_allclose(edges, 1)
    assert all(torch.equal(one, two) for one, two in zip(before, model.state_dict().values(), strict=True))


def test_equal_maps_of_different_findings_are_seen():
    one, two = (np.random.default_rng(seed).random((8, 8)).astype(np.float32) for seed in (0, 1))
    assert compare_findings([one, one]) == pytest.approx(1)
    assert compare_findings([one, two]) < 0.5
    assert compare_findings([one]) is None


def test_a_map_that_changes_with_the_form_of_the_case_is_seen():
    subject = make_subject()
    other = subject.inputs._replace(pixels=subject.inputs.pixels.flip(-1))
    model = Model()
    assert compare_inputs(model, subject, make_real_map, "any", subject.inputs) == 0
    assert compare_inputs(model, subject, make_real_map, "any", other) > 0.1


def test_the_twin_shows_the_same_picture(chest_files):
    data = chest_files["frontal"]
    twin = make_twin(data)
    assert twin is not None
    assert twin != data
    shown, turned = (load_pixels(one, size=112) for one in (data, twin))
    np.testing.assert_array_equal(shown, turned)
    assert np.ptp(shown) > 100
    assert make_twin(twin) is not None
    assert make_twin(b"no DICOM file") is None


def test_the_twin_of_a_windowed_file_shows_the_same_picture(tmp_path):
    from training.phantom import draw_dataset

    draw_dataset(tmp_path / "phantom", studies=8, seed=1, scale=0.05, workers=1)
    files = sorted((tmp_path / "phantom").rglob("*.dcm"))
    assert len(files) > 8
    for path in files:
        twin = make_twin(path.read_bytes())
        assert twin is not None
        shown, turned = (load_pixels(one, size=112) for one in (path.read_bytes(), twin))
        np.testing.assert_array_equal(shown, turned, err_msg=path.name)


def test_agreement():
    one = np.random.default_rng(0).random((20, 20)).astype(np.float32)
    assert compare_maps(one, one) == pytest.approx(
        dict.fromkeys(("pearson", "spearman", "iou_5", "iou_20"), 1)
    )
    against = compare_maps(one, 1 - one)
    assert against["pearson"] == pytest.approx(-1)
    assert against["iou_5"] == 0
    assert compare_maps(one, np.ones_like(one))["pearson"] == 0
    assert compare_maps(one, one**5)["spearman"] == pytest.approx(1)


def test_a_top_hit_is_another_patient():
    vectors = np.eye(3, dtype=np.float32)
    vectors[1] = (0.8, 0.6, 0)
    assert find_top_hits(vectors, vectors, ["a", "b", "c"], ["a", "b", "c"]) == [1, 0, 0]
    assert find_top_hits(vectors, vectors, ["a", "a", "c"], ["a", "a", "c"]) == [2, 2, 0]
    assert find_top_hits(vectors[:1], vectors[:1], ["a"], ["a"]) == [None]


def write(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_boxes_of_each_kind_of_file(tmp_path):
    phantom = write(
        tmp_path / "boxes.json", {"CXR1": [{"category": "pleural", "box": [1, 2, 5, 9], "heading": ""}]}
    )
    assert read_boxes(phantom) == {"CXR1": [FindingBox("pleural", (1, 2, 5, 9))]}
    names = [{"id": 1, "name": LABEL_NAMES["pleural"].upper()}, {"id": 2, "name": "Support Devices"}]
    coco = {
        "images": [{"id": 7, "file_name": "set/00010277_000.png", "width": 1024, "height": 512}],
        "categories": names,
        "annotations": [
            {"image_id": 7, "category_id": number, "bbox": [10, 20, 30, 40]} for number in (1, 2)
        ],
    }
    [box] = read_boxes(write(tmp_path / "coco.json", coco))["00010277_000"]
    assert box == FindingBox("pleural", (10, 20, 40, 60), 1024, 512)
    # The file on this machine has half the size: 256 x 512, in the middle of a square of 64.
    assert box.place(Frame.fit(256, 512, 64)) == (10 / 16, 16 + 20 / 16, 40 / 16, 16 + 60 / 16)
    entry = {"image_id": "a", "category": "cardiac", "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}
    rows = [
        {"boxes": [{**entry, "image_width": 1024, "image_height": 1024}, {**entry, "category": None}]},
        {"boxes": None},
    ]
    assert read_table_boxes(rows) == {"a": [FindingBox("cardiac", (1, 2, 4, 6), 1024, 1024)]}


def test_boxes_of_chexlocalize(tmp_path):
    polygon = [[30, 100], [50, 90], [40, 160]]
    content = {
        "patient64541_study1_view1_frontal": {
            "img_size": [2320, 2828],
            "Pleural Effusion": [polygon, [[1, 2], [3, 4], [5, 1]]],
            "Airspace Opacity": [polygon],
            "Lung Lesion": [polygon],  # nodules and masses: more than one category
        },
        "patient64541_study1_view2_lateral": {"img_size": [10, 20]},
    }
    found = read_boxes(write(tmp_path / "gt_annotations_val.json", content))
    assert found == {
        "patient64541/study1/view1_frontal": [
            FindingBox("pleural", (30, 90, 50, 160), 2828, 2320),
            FindingBox("pleural", (1, 1, 5, 4), 2828, 2320),
            FindingBox("general_radiographic", (30, 90, 50, 160), 2828, 2320),
        ]
    }


def test_chexlocalize_names_images_as_the_table_does():
    from training.data.collections.chexpert import get_chexpert_key

    path = Path("CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg")
    assert get_chexpert_key(path) == "patient64541/study1/view1_frontal"


def test_boxes_of_chest_xray_14(tmp_path):
    head = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    path = tmp_path / "BBox_List_2017.csv"
    path.write_text(f"{head}a_000.png,Cardiomegaly,10,20,30.5,40,,,\na_000.png,Mass,1,2,3,4,,,\n")
    found = read_boxes(path)
    assert found["a_000"][0] == FindingBox("cardiac", (10, 20, 40.5, 60), 1024, 1024)
    path.write_text(f"{head}a_000.png,Heart,1,2,3,4,,,\n")
    with pytest.raises(InputError, match="line 2"):
        read_boxes(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="are not Bbox"):
        read_boxes(path)


def test_the_real_boxes_of_chest_xray_14(nih14_directory):
    found = read_boxes(nih14_directory / "BBox_List_2017.csv")
    assert len(found) == 31
    assert all(0 <= edge <= 1024 for boxes in found.values() for box in boxes for edge in box.corners)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a_b_c": {"img_size": [10, 20], "Edema": [[1, 2]]}}, "CheXlocalize"),
        ({"a_b_c": {"img_size": [10, 20], "Edema": {"size": [10, 20], "counts": "x"}}}, "CheXlocalize"),
        ([], "neither boxes.json"),
        ({"a": [{"category": "pleural"}]}, "neither boxes.json"),
        ({"annotations": [{"image_id": 1}], "images": [], "categories": []}, "neither boxes.json"),
        ({"annotations": [], "images": [], "categories": []}, "no box of a known category"),
        ({}, "no box of a known category"),
    ],
)
def test_files_that_hold_no_boxes(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_boxes(write(tmp_path / "boxes.json", content))
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(InputError, match="cannot be read"):
        read_boxes(tmp_path / "text.json")


SANE = {"randomised": 0.1, "alike": 0.5, "padding": None, "inverted": 0.0, "missing": 0.001}
AHEAD = {"centre": {"pointing": {"value": 0.2, "low": 0.1, "high": 0.3}}}
LEVEL = {"centre": {"pointing": {"value": 0.05, "low": -0.02, "high": 0.12}}}


@pytest.mark.parametrize(
    ("sanity", "leads", "reason"),
    [
        (SANE, AHEAD, ""),
        ({**SANE, "randomised": 0.9}, AHEAD, "stays the same when the weights of the model are random"),
        ({**SANE, "randomised": None}, AHEAD, "not measured with random weights"),
        ({**SANE, "alike": 0.99}, AHEAD, "the same for different findings"),
        ({**SANE, "padding": 0.1}, AHEAD, "changes by 10% with the length of the padding"),
        ({**SANE, "inverted": 0.1}, AHEAD, "changes by 10% when the image is stored inverted"),
        ({**SANE, "missing": 0.1}, AHEAD, "its sum misses 10.0%"),
        (SANE, LEVEL, "not find findings better than the centre"),
        (SANE, {}, "was not measured"),
    ],
)
def test_the_gate_refuses_each_fault(sanity, leads, reason):
    results = {"sanity": {"a": sanity, "b": SANE}, "leads": {"a": leads, "b": AHEAD}}
    gate = pass_gate(["a", "b"], results, 10)
    assert gate["methods"]["a"]["passed"] == (not reason)
    assert reason in gate["methods"]["a"]["reason"]
    assert gate["default"] == ("b" if reason else "a")
    assert pass_gate(["a"], results, 10)["default"] == (None if reason else "a")


def test_deletion_and_insertion_are_compared_for_each_label():
    """A map of what the model uses is ahead of a random one, with a paired p value; a map of the rest is behind."""
    box = make_subject().draw_boxes().astype(np.float32)
    subjects = []
    for number in range(8):
        noise = np.random.default_rng(number).uniform(40, 80, (SIZE, SIZE)) + 150 * box
        subject = make_subject(pixels=noise.astype(np.float32))
        subjects.append(replace(subject, study_id=str(number), patient_id=str(number)))

    def draw(_model, _inputs, _label, key):
        return make_map(box if key == "right" else 1 - box)

    task = Task(
        model=Model(),
        subjects=subjects,
        methods=[MethodFacts("right", "Right"), MethodFacts("wrong", "Wrong")],
        make_map=draw,
        make_quick_map=draw,
        probe=lambda _model, _inputs, _label: weigh_box(subjects[0]),
        read_twin=lambda _: None,
        lengthen=lambda _: None,
    )
    few = {"sensitive": 1, "randomised": 1, "twins": 1, "resamples": 200}
    found = measure_maps(task, Sizes(faithful=8, **few))
    leads = found["labels"]["pleural"]["faithfulness_leads"]
    assert leads["right"]["deletion"]["high"] < 0 < leads["right"]["insertion"]["low"]
    assert leads["right"]["deletion"]["p"] < 0.05
    assert leads["wrong"]["insertion"]["value"] < 0 < leads["wrong"]["deletion"]["value"]
    results = {"fingerprint": "f" * 64, "data": "", "titles": {"right": "Right", "wrong": "Wrong"}}
    report = write_map_report({**results, "ways": {"image": found}})
    assert f"| {LABEL_NAMES['pleural']} | Right | -" in report
    nothing = measure_maps(task, Sizes(faithful=4, **few))["labels"]["pleural"]["faithfulness_leads"]
    assert nothing == {}


def test_two_nearly_empty_maps_are_not_alike():
    frame = Frame.fit(56, 56, 56)
    generator = np.random.default_rng(0)
    one, two = (1e-3 * generator.normal(size=(56, 56)).astype(np.float32) for _ in range(2))
    one[10, 10] = two[40, 40] = 1
    assert compute_ssim(one, two) > 0.8
    assert compare_structure(one, two, frame) < 0.2
    assert compare_structure(one, one, frame) == pytest.approx(1)
