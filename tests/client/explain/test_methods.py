"""Methods beside Integrated Gradients, on a small model with random weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.bundle import Bundle, amend_bundle, load_bundle, write_json
from contract.errors import ConfigError
from contract.labels import LABEL_INDEX, LABELS
from contract.map_checks import FILE, FOLDER, UNCHECKED, read_map_check

torch = pytest.importorskip("torch")
pytest.importorskip("captum")

from captum.attr import IntegratedGradients, LayerGradCam  # noqa: E402

from client.explain import METHODS, attribute, explain, explain_findings, explain_hit, read_inputs  # noqa: E402
from client.explain.baselines import BASELINES, draw_baseline  # noqa: E402
from client.explain.case import lengthen  # noqa: E402
from client.explain.gradients import FIRST_STEPS, MOST_STEPS, attribute_findings  # noqa: E402
from client.explain.hit import Case, embed_cases  # noqa: E402
from client.explain.maps import encode_png  # noqa: E402
from client.explain.methods import find_obstacle, make_map  # noqa: E402
from client.explain.network import Probe, fuse_points, make_path_ends  # noqa: E402
from client.explain.perturbation import fill_grey  # noqa: E402
from client.explain.words import find_sections  # noqa: E402
from training.model.model import load_model  # noqa: E402

REPORT = "The heart is enlarged. There is a small left effusion."


@pytest.fixture(scope="module")
def bundle(write_bundle, small_config, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "small",
        small_config,
        seed=5,
        texts=[REPORT],
        thresholds=[0.45] * len(LABELS),
    )


@pytest.fixture(scope="module")
def image() -> bytes:
    rows, columns = np.mgrid[0:120, 0:90]
    picture = np.exp(-((rows - 40) ** 2 + (columns - 60) ** 2) / 500)
    picture += np.exp(-((rows - 90) ** 2 + (columns - 25) ** 2) / 200)
    return encode_png((255 * picture / picture.max()).astype(np.uint8))


@pytest.fixture(scope="module")
def case(bundle, image):
    return load_model(bundle).requires_grad_(False), read_inputs(bundle, image=image, report=REPORT)


def correlate(first, second) -> float:
    return float(np.corrcoef(first.values.ravel(), second.values.ravel())[0, 1])


@pytest.mark.parametrize("key", list(METHODS))
def test_each_finding_has_a_map_of_its_own(case, key):
    """A map of a token of the fused sequence, instead of the label's logit, would be the same for all findings."""
    model, inputs = case
    indices = [LABEL_INDEX[name] for name in ("cardiac", "pleural", "air_leak", "malignancy")]
    maps = [make_map(model, inputs, index, key) for index in indices]
    assert all(np.isfinite(found.values).all() and np.abs(found.values).max() > 0 for found in maps)
    assert all(found.signed or found.values.min() >= 0 for found in maps)
    likeness = [correlate(one, two) for place, one in enumerate(maps) for two in maps[:place]]
    assert np.mean(likeness) < (
        0.999 if key == "rollout" else 0.95
    )  # rollout: the same layers below the label


@pytest.mark.parametrize("key", list(METHODS))
def test_padding_changes_no_map(case, key):
    model, inputs = case
    longer = lengthen(inputs, 64)
    assert longer.input_ids.shape[1] == 64 > inputs.input_ids.shape[1]
    first, second = (make_map(model, one, LABEL_INDEX["pleural"], key).values for one in (inputs, longer))
    np.testing.assert_allclose(first, second, atol=1e-3 * np.abs(first).max())


class LastStage(torch.nn.Module):
    """The logit of a label, with the features of the last stage as one layer whose channels come first."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe, self.layer = probe, torch.nn.Identity()

    def forward(self, pixels):
        encoder = self.probe.model.image_encoder
        features = encoder.backbone.forward_features(encoder.scale(pixels, encoder.mean))
        tokens = encoder.layout.take_tokens(features)
        grid = self.layer(tokens.transpose(1, 2).unflatten(2, (7, 7)))
        tokens = grid.flatten(2).transpose(1, 2)
        return self.probe.fuse(encoder.project(tokens) + encoder.position).logits[:, self.probe.index]


def test_grad_cam_is_that_of_captum(case):
    model, inputs = case
    index = LABEL_INDEX["cardiac"]
    stage = LastStage(Probe(model, inputs, index))
    pixels = inputs.pixels.clone().requires_grad_()
    expected = LayerGradCam(stage, stage.layer).attribute(pixels, relu_attributions=True)[0, 0].detach()
    assert expected.max() > 0
    found = make_map(model, inputs, index, "grad_cam").values
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("key", ["integrated_gradients", "grad_cam"])
def test_a_caller_may_have_switched_gradients_off(case, key):
    """As Captum does while it measures the sensitivity of a map."""
    model, inputs = case
    expected = make_map(model, inputs, 0, key, steps=4).values
    with torch.no_grad():
        np.testing.assert_array_equal(make_map(model, inputs, 0, key, steps=4).values, expected)


def test_shapley_values_sum_to_the_change_of_the_logit(case):
    model, inputs = case
    probe = Probe(model, inputs, LABEL_INDEX["cardiac"])
    found = make_map(model, inputs, LABEL_INDEX["cardiac"], "shapley")
    with torch.no_grad():
        change = float(probe(inputs.pixels) - probe(fill_grey(probe)))
    assert abs(change) > 1e-3
    assert found.values.shape == (7, 7)
    assert float(found.values.sum()) == pytest.approx(change, rel=1e-3)
    assert found.delta < 1e-3


def test_occlusion_is_the_fall_of_the_logit(case):
    """The corner is covered by one square alone."""
    model, inputs = case
    probe = Probe(model, inputs, LABEL_INDEX["cardiac"])
    covered = inputs.pixels.clone()
    covered[..., :8, :8] = fill_grey(probe)[..., :8, :8]
    with torch.no_grad():
        expected = float(probe(inputs.pixels) - probe(covered))
    found = make_map(model, inputs, LABEL_INDEX["cardiac"], "occlusion").values
    assert found.shape == (56, 56)
    assert found[0, 0] == pytest.approx(expected, abs=1e-5)


def test_rollout_carries_all_of_the_attention(case, bundle, image):
    """The rows of attention sum to 1, so no weight is lost on the way, also in shifted windows."""
    model, _ = case
    inputs = read_inputs(bundle, image=image, report=None)
    found = make_map(model, inputs, LABEL_INDEX["cardiac"], "rollout").values
    assert found.shape == (14, 14)
    assert found.sum() == pytest.approx(1, abs=1e-4)
    attention = model.image_encoder.backbone.layers[0].blocks[0].attn
    assert not attention.attn_drop._forward_hooks
    assert (
        attention.fused_attn == load_model(bundle).image_encoder.backbone.layers[0].blocks[0].attn.fused_attn
    )


def test_rollout_finds_the_window_of_a_token():
    """A label that attends to one token alone, below layers without attention, rolls out onto the token's patches."""
    from client.explain.attention import _place_windows

    class Block:
        input_resolution, window_size, shift_size = (8, 8), (4, 4), (2, 2)

    places = _place_windows(Block(), torch.device("cpu"))
    assert places.shape == (4, 16)
    assert sorted(places.flatten().tolist()) == list(range(64))
    assert places[0, 0] == 2 * 8 + 2  # shifted by 2 rows and 2 columns
    assert set(places[3].tolist()) >= {0, 63}  # the last window holds the four corners


def test_an_encoder_without_attention_says_so(small_config, write_bundle, tmp_path, image):
    config = replace(small_config, image_backbone="resnet10t", image_size=64, image_arguments={})
    other = write_bundle(
        tmp_path / "convolutional", config, seed=0, texts=[REPORT], thresholds=[0.5] * len(LABELS)
    )
    model = load_model(other)
    assert "ResNet" in find_obstacle(model, "rollout")
    assert find_obstacle(model, "grad_cam") == ""
    with pytest.raises(
        ConfigError, match=r"no map of Attention rollout, because the image encoder \(ResNet\)"
    ):
        explain(other, image=image, methods=["rollout"], steps=1)


def test_steps_are_doubled_until_the_integral_is_accurate(case, monkeypatch):
    model, inputs = case
    found = attribute(model, inputs, LABEL_INDEX["cardiac"])
    assert found.is_accurate
    assert found.steps >= FIRST_STEPS
    monkeypatch.setattr("client.explain.gradients.TOLERANCE", 0.0)
    monkeypatch.setattr("client.explain.gradients.LEAST_DELTA", 0.0)
    monkeypatch.setattr("client.explain.gradients.MOST_STEPS", 2 * FIRST_STEPS)
    assert attribute(model, inputs, LABEL_INDEX["cardiac"]).steps == 2 * FIRST_STEPS < MOST_STEPS


def test_the_integral_is_that_of_captum(case):
    model, inputs = case
    values, baselines = make_path_ends(model, inputs)
    indices = [LABEL_INDEX["cardiac"], LABEL_INDEX["pleural"]]
    found = attribute_findings(model, inputs, indices, steps=20)  # the last batch is not full
    for index, one in zip(indices, found, strict=True):
        reference = IntegratedGradients(
            lambda *points, i=index: fuse_points(model, inputs, points).logits[:, i]
        )
        pixels, tokens = reference.attribute(values, baselines, n_steps=20)
        np.testing.assert_allclose(one.pixels, pixels[0, 0], atol=1e-5 * float(pixels.abs().max()))
        tokens = tokens[0].sum(-1)
        np.testing.assert_allclose(one.tokens, tokens, atol=1e-5 * float(tokens.abs().max()))


def test_findings_share_the_path(case, monkeypatch):
    """Each point goes forward once for all findings, and a finding whose integral is accurate goes no further."""
    model, inputs = case
    indices = [LABEL_INDEX[name] for name in ("cardiac", "pleural", "air_leak")]
    single = [attribute(model, inputs, index) for index in indices]
    exact = sorted(one.convergence_delta for one in single)
    monkeypatch.setattr("client.explain.gradients.TOLERANCE", 0.0)
    monkeypatch.setattr(
        "client.explain.gradients.LEAST_DELTA", (exact[1] + exact[2]) / 2
    )  # two of three pass
    monkeypatch.setattr("client.explain.gradients.MOST_STEPS", 2 * FIRST_STEPS)
    single = [attribute(model, inputs, index) for index in indices]
    seen, finished = [], []
    hook = model.image_encoder.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    together = attribute_findings(model, inputs, indices, finish=finished.append)
    hook.remove()
    assert sorted(one.steps for one in together) == [FIRST_STEPS, FIRST_STEPS, 2 * FIRST_STEPS]
    assert sum(seen) == 2 + 3 * FIRST_STEPS  # both ends, and two rounds
    assert finished == [2, 1]
    for one, alone in zip(together, single, strict=True):
        assert one.steps == alone.steps
        np.testing.assert_allclose(one.pixels, alone.pixels, atol=1e-5 * np.abs(alone.pixels).max())
        np.testing.assert_allclose(one.tokens, alone.tokens, atol=1e-5 * np.abs(alone.tokens).max())


def test_an_inaccurate_integral_is_said(bundle, image):
    rough = explain(bundle, image=image, report=REPORT, steps=1)
    assert rough.steps == 1
    assert any("is not accurate: after 1 steps" in remark for remark in rough.remarks)
    fine = explain(bundle, image=image, report=REPORT)
    assert not any("is not accurate" in remark for remark in fine.remarks)


def test_the_mean_over_baselines_is_that_of_each(bundle, image):
    """Each baseline is reported with its delta, and the sum is the mean of the differences."""
    keys = ["black", "grey", "blurred", "uniform"]
    case = {"image": image, "report": REPORT, "label": "cardiac", "steps": 64}
    single = [explain(bundle, **case, baselines=[key]) for key in keys]
    joint = explain(bundle, **case, baselines=keys)
    assert [one.key for one in joint.baselines] == keys
    expected = np.mean([one.pixel_attribution for one in single], axis=0)
    np.testing.assert_allclose(joint.pixel_attribution, expected, atol=1e-6)
    assert np.abs(single[0].pixel_attribution - single[1].pixel_attribution).max() > 1e-4
    for alone, part in zip(single, joint.baselines, strict=True):
        assert part.logit == pytest.approx(alone.baseline_logit)
        assert part.convergence_delta == pytest.approx(alone.convergence_delta, abs=1e-6)
    assert joint.baseline_logit == pytest.approx(np.mean([one.baseline_logit for one in single]))
    assert sum(joint.contributions.values()) == pytest.approx(joint.logit - joint.baseline_logit, rel=0.02)
    assert "mean over 4 baselines" in joint.baseline
    assert [one["key"] for one in joint.to_dict()["baselines"]] == keys
    assert joint.maps[0].seconds > 0


def test_the_padding_of_every_baseline_is_black(case):
    inputs = case[1]
    for key in BASELINES:
        drawn = draw_baseline(inputs, key)[0, 0]
        rows, columns = inputs.frame.cut(56)
        assert not drawn[:, : columns.start].any()
        assert torch.equal(drawn, draw_baseline(inputs, key)[0, 0])
        assert bool(drawn[rows, columns].any()) == (key != "black")


def test_other_baselines_are_not_those_that_were_checked(own_bundle, image):
    rows = {"integrated_gradients": {"passed": True, "reason": ""}}
    measured = write_checks(own_bundle, {"default": "integrated_gradients", "methods": rows, "findings": 9})
    [usual] = explain(measured, image=image, label="cardiac", steps=4).maps
    assert usual.caveat == ""
    other = explain(measured, image=image, label="cardiac", steps=4, baselines=["blurred"])
    assert "checked with a black baseline" in other.maps[0].caveat
    assert other.maps[0].caveat in other.remarks


def test_bad_baselines(bundle, image):
    for keys, message in ((["white"], "no baseline 'white'"), ([], "at least one baseline")):
        with pytest.raises(ConfigError, match=message):
            explain(bundle, image=image, label="cardiac", baselines=keys)


def test_several_findings_are_those_above_their_threshold(bundle, image):
    seen = []
    found = explain_findings(
        bundle, image=image, steps=2, methods=["attention"], progress=lambda *state: seen.append(state)
    )
    single = {key: explain(bundle, image=image, label=key, steps=2) for key in (one.key for one in found)}
    assert all(one.probability >= one.threshold for one in found)
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    assert all(single[one.key].logit == pytest.approx(one.logit) for one in found)
    assert seen[-1] == (2 * len(found), 2 * len(found))
    named = explain_findings(bundle, image=image, labels=["cardiac", "normal"], steps=2)
    assert [one.key for one in named] == ["cardiac", "normal"]
    with pytest.raises(ConfigError, match="no method 'gradcam'"):
        explain(bundle, image=image, methods=["gradcam"])


def test_maps_come_back_in_the_geometry_of_the_file(bundle, image):
    found = explain(bundle, image=image, label="cardiac", steps=2)
    assert found.original.shape == (120, 90)
    assert found.original.max() == 255
    assert (found.frame.rows, found.frame.columns, found.frame.size) == (120, 90, 56)


def write_checks(bundle: Bundle, gate: dict, **changes) -> Bundle:
    content = {"format": 1, "fingerprint": bundle.fingerprint, "ways": {"image": {"gate": gate}}, **changes}
    with amend_bundle(bundle) as scratch:
        (scratch / FOLDER).mkdir()
        write_json(scratch / FOLDER / FILE, content)
    return load_bundle(bundle.path)


@pytest.fixture
def own_bundle(write_bundle, small_config, tmp_path) -> Bundle:
    return write_bundle(
        tmp_path / "own", small_config, seed=5, texts=[REPORT], thresholds=[0.45] * len(LABELS)
    )


def test_a_map_that_passed_is_the_default(own_bundle, image):
    unchecked = explain(own_bundle, image=image, steps=2)
    assert [found.method for found in unchecked.maps] == ["integrated_gradients", "attention"]
    assert UNCHECKED in unchecked.remarks
    rows = {
        "attention": {"passed": False, "reason": "it lags"},
        "grad_cam": {"passed": True, "reason": ""},
    }
    checked = write_checks(own_bundle, {"default": "grad_cam", "methods": rows, "findings": 9})
    found = explain(checked, image=image, steps=2)
    assert [one.method for one in found.maps] == ["grad_cam"]
    assert UNCHECKED not in found.remarks
    wanted = explain(checked, image=image, steps=2, methods=["attention"])
    sentence = "Do not read the map of Attention of the label as a reason: it lags (9 findings measured)."
    assert wanted.maps[0].caveat == sentence
    assert sentence in wanted.remarks
    both = explain(checked, image=image, report=REPORT, steps=2)
    assert UNCHECKED in both.remarks  # only the image alone was measured


def test_without_a_map_that_passed_none_is_shown(own_bundle, image, tmp_path):
    rows = {"attention": {"passed": False, "reason": "it lags"}}
    checked = write_checks(own_bundle, {"default": None, "methods": rows, "findings": 9})
    found = explain(checked, image=image, steps=2)
    assert found.maps == ()
    refusal = "No map is shown as a reason, because none passed its checks on this bundle: it lags."
    assert refusal in found.remarks
    (tmp_path / "chest.png").write_bytes(image)
    line = ["explain", str(tmp_path / "chest.png"), "--bundle", str(checked.path), "--finding", "cardiac"]
    shown = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "why.png"), "--steps", "4"])
    assert shown.exit_code == 0, shown.output
    assert refusal in shown.stdout


def test_the_measurement_of_another_model_does_not_count(own_bundle):
    gate = {"default": "attention", "methods": {}, "findings": 9}
    assert read_map_check(own_bundle, "image") is None
    other = write_checks(own_bundle, gate, fingerprint="00" * 32)
    assert read_map_check(other, "image") is None


def test_a_hit_is_explained_on_both_sides(bundle, image):
    turned = encode_png(np.asarray(np.rot90(np.tile(np.arange(90, dtype=np.uint8), (120, 1)))))
    found = explain_hit(bundle, Case(image, REPORT), Case(turned))
    vectors = embed_cases(
        load_model(bundle),
        [
            read_inputs(bundle, image=image, report=REPORT),
            read_inputs(bundle, image=turned, report=None),
        ],
    )
    assert found.similarity == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    for side in (found.query, found.hit):
        total = sum(side.contributions.values())
        assert total == pytest.approx(found.similarity - side.baseline_similarity, abs=5e-3)
    assert set(found.query.contributions) == {"image", "text"}
    assert (found.hit.words, set(found.hit.contributions)) == ((), {"image"})
    assert json.dumps(found.to_dict())


def test_a_case_is_its_own_best_hit(bundle, image):
    found = explain_hit(bundle, Case(image), Case(image), steps=8)
    assert found.similarity == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.query.pixel_attribution, found.hit.pixel_attribution)


def test_sections_are_kept():
    report = "FINDINGS: The heart is enlarged.\nIMPRESSION: Effusion."
    text = "The heart is enlarged. Effusion."
    assert find_sections(report, text, "full") == (("findings", 0, 22), ("impression", 23, 32))
    assert find_sections(report, "The heart is enlarged.", "findings") == (("findings", 0, 22),)
    assert find_sections(report, "The heart is [MASK].", "findings_masked") == (("findings", 0, 20),)
    assert find_sections(report, "Another text.", "full") == ()
    assert find_sections("", "Another text.", "full") == ()


def test_the_command_explains_findings_and_hits(bundle, image, tmp_path):
    (tmp_path / "chest.png").write_bytes(image)
    line = ["explain", str(tmp_path / "chest.png"), "--bundle", str(bundle.path), "--steps", "4", "--json"]
    out = ["--out", str(tmp_path / "why.png"), "--maps", str(tmp_path / "maps")]
    chosen = ["--finding", "cardiac", "--finding", "pleural", "--method", "attention", "--method", "grad_cam"]
    told = CliRunner().invoke(app, [*line, *out, *chosen])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    assert [answer["key"], answer["further"][0]["key"]] == ["cardiac", "pleural"]
    assert [one["method"] for one in answer["maps"]] == ["attention", "grad_cam"]
    assert len(answer["written"]) == 5
    seconds = answer["seconds"]
    assert 0 < seconds["write"] < seconds["total"]
    assert seconds["explain"] + seconds["write"] == pytest.approx(seconds["total"], abs=0.003)
    assert (tmp_path / "why.png").is_file()
    for wrong in (["--hit", "1"], ["--hit", "1", "--table", "t.parquet", "--finding", "cardiac"]):
        assert isinstance(CliRunner().invoke(app, [*line, *wrong]).exception, SystemExit)
