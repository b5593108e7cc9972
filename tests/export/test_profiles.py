"""Profiles: what comes with the package loads, and a mistake in a file is named."""

import json
from dataclasses import asdict

import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from contract.errors import ConfigError
from contract.tensors import GRAPHS
from export.profiles import PROFILES, list_profiles, load_profile

GOOD = """
[fp32]
description = "plain"
target = "cpu"
conversion = "none"

[fp32.limits]
probability_difference = 1e-4
embedding_cosine = 0.999
flip_share = 0
auroc_change = 0.001
ap_change = 0.001
neighbour_overlap = 0.9
"""


def test_the_four_profiles_load_and_their_limits_order_by_strictness():
    assert list_profiles() == ["fp32", "bf16", "fp16", "int8"]
    profiles = {name: load_profile(name) for name in list_profiles()}
    for name in ("bf16", "fp16", "int8"):
        for measure, allowed in asdict(profiles[name].limits).items():
            strict = getattr(profiles["fp32"].limits, measure)
            at_least = measure in {"embedding_cosine", "neighbour_overlap"}
            assert allowed <= strict if at_least else allowed >= strict
    assert profiles["fp32"].graphs == GRAPHS
    assert profiles["int8"].graphs == GRAPHS
    assert (profiles["fp16"].target, profiles["fp16"].conversion) == ("gpu", "fp16")


def test_the_best_cpu_profile_promises_what_the_readme_says():
    limits = load_profile("bf16").limits
    assert limits.embedding_cosine >= 0.9999
    assert limits.flip_share <= 0.001


@pytest.mark.parametrize("name", list_profiles())
def test_optimization_is_what_triton_reads(name):
    profile = load_profile(name)
    optimization = json.loads(json.dumps(profile.make_optimization()))
    config = json_format.ParseDict({"optimization": optimization}, model_config_pb2.ModelConfig())
    found = config.optimization.execution_accelerators.cpu_execution_accelerator
    assert [entry.name for entry in found] == ([profile.accelerator] if profile.accelerator else [])
    if found:
        assert dict(found[0].parameters) == profile.parameters


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flip_share = 0", "flip_shar = 0", r"no setting flip_shar\. Did you mean flip_share"),
        ("flip_share = 0\n", "", "flip_share is missing"),
        ("flip_share = 0", "flip_share = 1.5", "flip_share must be a number from 0 to 1, not 1.5"),
        ("flip_share = 0", "flip_share = nan", "flip_share must be a number from 0 to 1, not nan"),
        ("flip_share = 0", "flip_share = true", "flip_share must be a number from 0 to 1, not True"),
        ('target = "cpu"', 'target = "tpu"', "target must be one of cpu, gpu, not 'tpu'"),
        ('conversion = "none"', 'conversion = "int4"', "conversion must be one of none, .*, not 'int4'"),
        ('conversion = "none"', "", "conversion is missing"),
        ('target = "cpu"', 'target = "cpu"\nacelerator = "x"', r"no setting acelerator\. Did you mean acc"),
        ('target = "cpu"', 'target = "cpu"\nname = "x"', "no setting name"),
        ('target = "cpu"', 'target = "cpu"\ngraphs = ["text_encode"]', "Did you mean text_encoder"),
        ('target = "cpu"', 'target = "cpu"\ngraphs = []', "graphs must be a list with at least one name"),
        (
            'target = "cpu"',
            'target = "cpu"\ngraphs = "text_encoder"',
            "graphs must be a list with at least one name",
        ),
        ('target = "cpu"', 'target = "cpu"\nparameters = 3', "parameters must be a table"),
        (
            'target = "cpu"',
            'target = "cpu"\nfaster_than = "fp23"',
            "no profile 'fp23' for faster_than. Did you",
        ),
        (
            'target = "cpu"',
            'target = "cpu"\nkept_share = 2',
            "kept_share must be a number from 0 to 1, not 2",
        ),
        (
            'target = "cpu"',
            'target = "cpu"\nkept_share = 0.1',
            "kept_share is for the conversion int8, not none",
        ),
        ("[fp32.limits]", "[fp32.limit]", r"no setting limit\. Did you mean limits"),
        ("[fp32]", "[fp32", "is not valid TOML"),
    ],
)
def test_a_mistake_is_named(old, new, message, tmp_path):
    assert old in GOOD
    path = tmp_path / "profiles.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_profile("fp32", path)


def test_another_file_of_profiles_is_read(tmp_path):
    path = tmp_path / "profiles.toml"
    path.write_text(GOOD)
    assert load_profile("fp32", path).limits.flip_share == 0
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load_profile("fp32", tmp_path / "none.toml")
    path.with_name("number.toml").write_text("fp32 = 3\n")
    with pytest.raises(ConfigError, match=r"fp32 must be a table"):
        load_profile("fp32", path.with_name("number.toml"))


def test_unknown_profile_suggests_a_near_one():
    with pytest.raises(ConfigError, match=r"no precision profile 'bf61'\. Did you mean bf16"):
        load_profile("bf61")
    with pytest.raises(ConfigError, match=r"Use one of fp32, bf16, fp16, int8"):
        load_profile("quarter")


def test_the_head_of_the_file_explains_every_key():
    head = PROFILES.read_text().partition("[fp32]")[0]
    profile = load_profile("bf16")
    for key in (*asdict(profile.limits), "conversion", "graphs", "accelerator", "faster_than", "kept_share"):
        assert key in head
