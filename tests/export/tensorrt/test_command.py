"""`export_plans`: what lies where afterwards, with TensorRT and without, and what a plan says of itself."""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from onnx import helper
from rich.console import Console
from tritonclient.grpc import model_config_pb2

from contract.bundle import Bundle
from contract.errors import ArtifactError, ConfigError, FingerprintError
from contract.tensors import GRAPHS
from export.publish import publish
from export.tensorrt.build import PlanSettings, export_plans
from export.tensorrt.builders import Gpu
from export.tensorrt.configs import CONTAINER, CONTAINER_RELEASE
from export.tensorrt.records import check_plan

A100 = Gpu("NVIDIA A100", (8, 0))


def test_plans_of_a_repository(repository: Path, tmp_path: Path, trt: Any, gpu: None) -> None:
    steps: list[tuple[int, int]] = []
    result = export_plans(
        repository, tmp_path / "out", progress=lambda done, total: steps.append((done, total))
    )
    assert sorted(result.plans) == sorted(GRAPHS)
    assert steps[-1] == (len(GRAPHS), len(GRAPHS))
    assert (tmp_path / "out" / "timing-10.5.0-sm80.cache").is_file()
    assert "not passed the parity gate" in " ".join(result.to_sentences())
    plan = result.plans["text_encoder"]
    assert plan == tmp_path / "out" / "models" / "text_encoder" / "1" / "model.plan"
    record = json.loads((plan.parent / "model.plan.json").read_text())
    assert (record["tensorrt"], record["compute_capability"]) == ("10.5.0", "8.0")
    assert record["fingerprint"] == result.fingerprint
    assert record["precision"] == "fp16"
    config = text_format.Parse((plan.parents[1] / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.platform, config.backend) == ("tensorrt_plan", "")
    assert list(config.version_policy.specific.versions) == [1]
    assert not (tmp_path / "out" / "build.sh").exists()
    assert json.loads((tmp_path / "out" / "tensorrt.json").read_text())["built"] is True


def test_a_plan_has_two_profiles_and_cuda_graphs_where_they_are_asked_for(
    repository: Path, tmp_path: Path, trt: Any, gpu: None
) -> None:
    plans = export_plans(repository, tmp_path / "out", PlanSettings(cuda_graphs=True)).plans
    text = (plans["fusion_image"].parents[1] / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert {spec.batch_size for spec in config.optimization.cuda.graph_spec} == {
        1,
        4,
    }  # what this one warms up
    record = json.loads((plans["fusion_image"].parent / "model.plan.json").read_text())
    typical = [profile["image_tokens"]["typical"] for profile in record["profiles"]]
    assert typical == [[8, 49, 128], [1, 49, 128]]
    assert len(trt.calls["profiles"]) == 2 * len(GRAPHS)


def test_plans_that_are_there_are_kept(repository: Path, tmp_path: Path, trt: Any, gpu: None) -> None:
    out = tmp_path / "out"
    first = export_plans(repository, out)
    (first.plans["fusion_text"]).write_bytes(b"changed")
    again = export_plans(repository, out)
    assert set(again.kept) == set(GRAPHS) - {"fusion_text"}
    assert trt.builds == len(GRAPHS) + 1
    export_plans(repository, out, PlanSettings(precision="fp32"))
    assert trt.builds == 2 * len(GRAPHS) + 1


def test_plans_of_a_bundle(
    bundle: Bundle,
    graphs: dict[str, Path],
    tmp_path: Path,
    trt: Any,
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copy_graphs(given: Bundle, out: Path) -> dict[str, Path]:  # the export itself takes many seconds
        assert given.fingerprint == bundle.fingerprint
        out.mkdir(parents=True)
        return {name: Path(shutil.copy(path, out / path.name)) for name, path in graphs.items()}

    monkeypatch.setattr("export.graphs.from_torch.export_graphs", copy_graphs)
    result = export_plans(bundle.path, tmp_path / "out", PlanSettings(precision="bf16"))
    assert sorted(result.plans) == sorted(GRAPHS)
    assert result.fingerprint == bundle.fingerprint
    assert trt.calls["parsed"].startswith(str(tmp_path / "out" / "graphs"))
    assert trt.calls["parsed"].endswith(".bf16.onnx")


def test_plans_by_trtexec(
    repository: Path, tmp_path: Path, no_tensorrt: None, gpu: None, programs: Callable[[str, str], Path]
) -> None:
    programs(
        "trtexec",
        'echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100500] [b18] # trtexec"\n'
        'for word; do case "$word" in --saveEngine=*) echo built >"${word#--saveEngine=}";; esac; done',
    )
    result = export_plans(repository, tmp_path / "out")
    assert result.builder.startswith("trtexec")
    assert {path.read_text() for path in result.plans.values()} == {"built\n"}
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_failing_trtexec_gives_its_first_error(
    repository: Path, tmp_path: Path, no_tensorrt: None, gpu: None, programs: Callable[[str, str], Path]
) -> None:
    programs(
        "trtexec",
        'echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100500]"\n[ "$1" = --help ] && exit 0\n'
        'echo "[11/25/2026-10:00:00] [E] [TRT] ModelImporter.cpp:948: while parsing node [Mod]" >&2\nexit 1',
    )
    with pytest.raises(
        ArtifactError, match=r"could not build a plan of .*\.fp16\.onnx: ModelImporter\.cpp:948: while"
    ):
        export_plans(repository, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("model.plan*"))


def test_without_tensorrt_nothing_is_built_and_that_is_said(
    repository: Path, tmp_path: Path, no_tensorrt: None
) -> None:
    out = tmp_path / "a place"
    result = export_plans(repository, out)
    assert result.plans == {}
    assert result.to_sentences()[0].startswith(
        "Nothing was built, because neither the tensorrt package nor trtexec"
    )
    assert result.to_dict()["built"] is False
    assert not list(out.rglob("model.plan"))
    words = shlex.split(next(command for command in result.commands if "image_encoder" in command))
    assert words[:5] == ["docker", "run", "--rm", "--gpus", "all"]
    assert f"type=bind,source={out}/graphs,target=/graph,readonly" in words
    assert f"type=bind,source={out},target=/out" in words
    command = words[words.index(CONTAINER) :]
    assert command[1:4] == [
        "trtexec",
        "--onnx=/graph/image_encoder.fp16.onnx",
        "--saveEngine=/out/models/image_encoder/1/model.plan",
    ]
    assert f"--timingCacheFile=/out/timing-{CONTAINER_RELEASE}.cache" in command
    assert "--optShapes=pixels:8x1x112x112" in command
    assert (out / "models" / "image_encoder" / "1").is_dir()
    script = (out / "build.sh").read_text().splitlines()
    assert script[-len(GRAPHS) :] == list(result.commands)
    assert (out / "build.sh").stat().st_mode & 0o100


def test_tensorrt_without_a_gpu_builds_nothing(
    repository: Path, tmp_path: Path, trt: Any, programs: Any
) -> None:
    result = export_plans(repository, tmp_path / "out")
    assert "nvidia-smi names no GPU" in result.to_sentences()[0]
    assert trt.builds == 0
    programs("nvidia-smi", "echo 'NVIDIA A100, 8.0'")
    assert export_plans(repository, tmp_path / "out").plans
    assert not (tmp_path / "out" / "build.sh").exists()


def test_another_release_than_triton_has_is_said(
    repository: Path, tmp_path: Path, trt: Any, gpu: None
) -> None:
    trt.__version__ = "10.9.0.34"
    result = export_plans(repository, tmp_path / "out")
    assert any("need TensorRT 10.9.0. Triton 26.07 has 11.1" in note for note in result.notes)


def test_an_old_tensorrt_is_a_config_error(repository: Path, tmp_path: Path, trt: Any, gpu: None) -> None:
    trt.__version__ = "8.6.1"
    with pytest.raises(ConfigError, match=r"need TensorRT 10 or later.*not 8\.6\.1"):
        export_plans(repository, tmp_path / "out")


def test_bf16_needs_ampere(
    repository: Path, tmp_path: Path, trt: Any, programs: Callable[[str, str], Path]
) -> None:
    programs("nvidia-smi", "echo 'Tesla T4, 7.5'")
    with pytest.raises(ConfigError, match=r"bf16 needs compute capability 8\.0, but Tesla T4 has 7\.5"):
        export_plans(repository, tmp_path / "out", PlanSettings(precision="bf16"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (PlanSettings(precision="int4"), "fp32, fp16 or bf16, not int4"),  # type: ignore[arg-type]
        (PlanSettings(workspace_mib=0), "at least 1 MiB, not 0"),
        (PlanSettings(typical_batch=0), "1 to 32, not 0"),
    ],
)
def test_bad_settings(
    repository: Path, tmp_path: Path, no_tensorrt: None, settings: PlanSettings, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        export_plans(repository, tmp_path / "out", settings)


def test_bad_paths(repository: Path, tmp_path: Path, no_tensorrt: None) -> None:
    with pytest.raises(ConfigError, match="neither a bundle nor a repository"):
        export_plans(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ConfigError, match="lies in"):
        export_plans(repository, repository / "plans")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        export_plans(repository, tmp_path / "full")
    with pytest.raises(ConfigError, match="is not a directory"):
        export_plans(repository, tmp_path / "full" / "notes.txt")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_a_disk_that_refuses_is_an_artifact_error(
    repository: Path, tmp_path: Path, no_tensorrt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ArtifactError, match=r"Could not write .*: No space left on device"):
        export_plans(repository, tmp_path / "out")


def test_a_graph_that_tensorrt_cannot_take_stops_before_any_build(
    bundle: Bundle, graphs: dict[str, Path], tmp_path: Path, trt: Any, gpu: None
) -> None:
    place = publish(bundle, graphs, tmp_path / "repository")
    graph = place / "fusion_text" / "1" / "model.onnx"
    model = onnx.load(graph)
    model.graph.node.append(helper.make_node("NonZero", ["text_tokens"], ["where"], name="find_tokens"))
    onnx.save(model, graph)
    with pytest.raises(
        ArtifactError,
        match=r"TensorRT 10\.5\.0 cannot read .*fusion_text/1/model\.onnx: node find_tokens \(NonZero\)",
    ):
        export_plans(place, tmp_path / "out")
    assert trt.builds == 0


def test_a_graph_of_another_model_is_refused(
    bundle: Bundle, graphs: dict[str, Path], tmp_path: Path, no_tensorrt: None
) -> None:
    place = publish(bundle, graphs, tmp_path / "repository")
    graph = place / "fusion_text" / "1" / "model.onnx"
    model = onnx.load(graph)
    next(entry for entry in model.metadata_props if entry.key == "fingerprint").value = "0" * 64
    onnx.save(model, graph)
    with pytest.raises(FingerprintError):
        export_plans(place, tmp_path / "out")


def test_a_plan_is_held_to_release_and_gpu(repository: Path, tmp_path: Path, trt: Any, gpu: None) -> None:
    plan = export_plans(repository, tmp_path / "out").plans["fusion_image"]
    check_plan(plan, (10, 5, 0), A100)
    with pytest.raises(ArtifactError, match=r"built for TensorRT 10\.5\.0, but this machine has 10\.6\.0"):
        check_plan(plan, (10, 6, 0), A100)
    with pytest.raises(ArtifactError, match=r"compute capability 8\.0, but this machine has 9\.0"):
        check_plan(plan, (10, 5, 0), Gpu("NVIDIA H100", (9, 0)))
    plan.write_bytes(b"other")
    with pytest.raises(ArtifactError, match="not the file that its record describes"):
        check_plan(plan, (10, 5, 0), A100)
    plan.with_name("model.plan.json").write_text("[")
    with pytest.raises(ArtifactError, match="no readable record"):
        check_plan(plan, (10, 5, 0), A100)


def test_the_command_prints_what_to_run(
    repository: Path, tmp_path: Path, no_tensorrt: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli.export_tensorrt import export_tensorrt, print_plans

    console = Console(width=60)
    result = export_tensorrt(
        console, repository, tmp_path / "out", precision="fp16", typical_batch=8, workspace_mib=1024
    )
    print_plans(console, result)
    printed = capsys.readouterr().out
    assert "Nothing was built" in printed
    for command in result.commands:
        assert command in printed.splitlines()  # whole, to be copied


@pytest.mark.parametrize(
    "kind", ["a text", "a directory", "nothing", "a damaged repository", "a damaged bundle"]
)
@pytest.mark.parametrize("given", ["a new directory", "an empty one"])
def test_what_cannot_be_built_leaves_nothing(kind: str, given: str, repository: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "new" / "out"
    if kind == "a text":
        source.write_text("no model")
    elif kind == "a damaged repository":
        shutil.copytree(repository, source)
        (source / "text_encoder" / "1" / "model.onnx").write_bytes(b"x")
    elif kind != "nothing":
        source.mkdir()
        if kind == "a damaged bundle":
            (source / "manifest.json").write_text("{")
    if given == "an empty one":
        out.mkdir(parents=True)
    with pytest.raises((ConfigError, ArtifactError)):
        export_plans(source, out)
    assert out.exists() == (given == "an empty one")
    assert not (out.is_dir() and any(out.iterdir()))
    assert (tmp_path / "new").exists() == (given == "an empty one")


def test_a_failure_leaves_the_files_of_an_earlier_run(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_plans(repository, out)
    before = sorted(out.rglob("*"))
    with pytest.raises(ConfigError, match="neither a bundle nor a repository"):
        export_plans(tmp_path / "nothing", out)
    assert sorted(out.rglob("*")) == before
