"""`cxr bench gpu`: it ends and says what it could not measure, goes on where it stopped, and mixes nothing.

The whole is run on the processor with the smallest model; the figures themselves are `make gpu`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from bench.gpu import run as gpu_run
from bench.gpu.__main__ import install_wheels, main
from bench.gpu.log import Log, Settings, read_entries
from bench.gpu.model import BUNDLE
from bench.gpu.part import PARTS, run_part
from bench.gpu.report import to_markdown
from bench.gpu.run import run_gpu
from contract.errors import ArtifactError, ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = Settings("cpu", "demo", length=32, seconds=0.01, batches=(1, 2), vectors=1000)


@pytest.fixture
def console():
    return Console(quiet=True)


@pytest.fixture
def small_size(small_config, tmp_path) -> Path:
    """A training config of the smallest model, as a file."""
    from training.config.toml_file import format_config, load_config

    path = tmp_path / "small.toml"
    path.write_text(format_config(replace(load_config("demo", {"data.max_length": 64}), model=small_config)))
    return path


def run_small(out: Path, size: Path, *parts: str) -> dict:
    only = [word for part in parts for word in ("--only", part)]
    options = [
        "--device",
        "cpu",
        "--size",
        str(size),
        "--seconds",
        "0.01",
        "--batches",
        "1,2",
        "--vectors",
        "1000",
    ]
    command = [sys.executable, "-m", "bench.gpu", str(out), *options, *only, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_parts(parts: dict, batches: tuple[int, ...]) -> None:
    """See that every part has its figures, or the reason why a processor has none."""
    assert list(parts) == list(PARTS)
    for name in ("peak", "model", "torch", "onnx", "gates"):
        assert parts[name]["figures"], parts[name]
    for runner, precision in (("torch", "bf16"), ("torch", "fp16"), ("onnx", "fp16")):
        figures = parts[runner]["figures"]
        for model in ("image_encoder", "text_encoder", "fusion_study", "study"):
            for batch in batches:
                entry = figures[f"{model} {precision} batch {batch}"]
                assert entry["p50_ms"] <= entry["p99_ms"]
                assert entry["cases_per_s"] == pytest.approx(1e3 * batch / entry["p50_ms"], rel=0.01)
                assert entry["share_of_peak"] is None  # of a processor nothing is claimed
    study, image = (parts["torch"]["figures"][f"{name} fp16 batch 1"] for name in ("study", "image_encoder"))
    assert study["tflops"] / study["cases_per_s"] > image["tflops"] / image["cases_per_s"] > 0
    assert parts["gates"]["figures"]["gate of fp32"]["passed"] is True
    assert parts["tensorrt"]["reasons"] == {"study fp16": "TensorRT runs only on NVIDIA GPUs."}
    if find_spec("pytriton"):
        served = parts["shared memory"]
        assert set(served["figures"]) == {"served study, grpc", "served study, shared_memory"}
        assert served["reasons"] == {"served study, cuda_shared_memory": "CUDA shared memory needs a GPU."}


def test_every_part_measures_on_a_processor(small_size, make_model, tmp_path, monkeypatch):
    """In this process, with graphs that exist already, modules that are not traced, and a batch of 1."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    compiled = []

    def keep(module, **options):
        compiled.append(options)
        return module

    monkeypatch.setattr(torch, "compile", keep)
    bundle, graphs = make_model(1)
    shutil.copytree(bundle.path, tmp_path / BUNDLE)
    shutil.copytree(graphs["image_encoder"].parent, tmp_path / "model" / "plain")
    (tmp_path / "model" / "plain" / "done").touch()
    settings = replace(SMALL, size=str(small_size), batches=(1,))
    assert all(run_part(name, tmp_path, time.time() + 300, settings) for name in PARTS)
    check_parts({name: read_entries(tmp_path / "parts" / f"{name}.json") for name in PARTS}, settings.batches)
    assert compiled == [{"backend": "eager", "dynamic": None}] * 6  # three modules in two precisions


def test_what_was_measured_is_kept_and_the_rest_is_measured(small_size, tmp_path):
    out = tmp_path / "gpu"
    first = run_small(out, small_size, "faiss")["parts"]
    assert list(first) == ["faiss"]
    before = (out / "parts" / "faiss.json").read_text()
    again = run_small(out, small_size, "peak", "faiss")["parts"]
    assert list(again) == ["peak", "faiss"]
    assert again["faiss"] == json.loads(before)  # nothing is measured twice
    assert len(again["peak"]["figures"]) == 3


@pytest.mark.slow
def test_the_whole_runs_on_a_processor_and_goes_on(small_size, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "gpu"
    check_parts(run_small(out, small_size)["parts"], (1, 2))
    assert "Compiled PyTorch" in (out / "gpu.md").read_text()
    before = (out / "parts" / "torch.json").read_text()
    (out / "parts" / "peak.json").unlink()
    again = run_small(out, small_size, "peak", "torch")
    assert again["parts"]["torch"] == json.loads(before)  # nothing is measured twice
    assert len(again["parts"]["peak"]["figures"]) == 3


def test_flops_are_those_of_the_layers():
    torch = pytest.importorskip("torch")
    from bench.gpu.torch_part import _Study

    study = _Study(SMALL, "bf16", None)
    with torch.inference_mode():
        study._compile()
    width, layers, length = 128, 2, 32  # the demo's text encoder: see training/configs/demo.toml
    products = layers * length * (4 * width**2 + 2 * width * 512) + length * width * width
    attention = layers * 2 * length**2 * width
    assert study._flops["text_encoder"] == 2 * (products + attention)


def test_the_rate_of_a_slow_device_is_not_rounded_to_nothing():
    from bench.gpu.onnx_part import _add_share

    assert _add_share({"cases_per_s": 0.3}, 1.23456e-5, None)["tflops"] == 3.704e-6
    assert _add_share({"cases_per_s": 100.0}, 7.123456, 1000.0)["tflops"] == 712.3
    assert _add_share({"cases_per_s": 0.3}, None, None)["tflops"] is None


def test_without_a_gpu_every_part_says_so_and_the_command_ends(tmp_path, console):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    report = run_gpu(console, tmp_path, Settings("cuda"), minutes=2, only=("peak", "tensorrt"))
    for name in ("peak", "tensorrt"):
        assert report["parts"][name]["figures"] == {}
        (reason,) = report["parts"][name]["reasons"].values()
        assert "finds no GPU here" in reason
    assert "Not measured: peak. PyTorch" in (tmp_path / "gpu.md").read_text()


def test_time_ends_between_figures_and_the_next_run_goes_on(tmp_path):
    pytest.importorskip("torch")
    assert run_part("peak", tmp_path, time.time() - 1, SMALL) is False
    assert (
        "Repeat the command to continue" in Log(tmp_path, "peak").out.joinpath("parts/peak.json").read_text()
    )
    assert run_part("peak", tmp_path, time.time() + 60, SMALL) is True
    found = json.loads((tmp_path / "parts" / "peak.json").read_text())
    assert (len(found["figures"]), found["reasons"]) == (3, {})


def test_no_time_at_all_is_said_by_every_part(tmp_path, console):
    report = run_gpu(console, tmp_path, SMALL, minutes=0.01)
    assert list(report["parts"]) == list(PARTS)
    assert all("before it started" in part["reasons"][name] for name, part in report["parts"].items())


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda *_, **__: subprocess.CompletedProcess([], -11), "ended with signal 11"),
        (lambda *_, **__: subprocess.CompletedProcess([], 1), "ended with exit status 1"),
    ],
)
def test_a_part_that_crashes_is_told_and_the_others_run(tmp_path, console, monkeypatch, end, said):
    monkeypatch.setattr(gpu_run.subprocess, "run", end)
    monkeypatch.setattr(
        gpu_run, "_describe_machine", lambda: {"gpus": [], "cpu": "x", "versions": {}, "commit": None}
    )
    report = run_gpu(console, tmp_path, SMALL, minutes=1, only=("peak", "faiss"))
    assert all(said in report["parts"][name]["reasons"]["the rest"] for name in ("peak", "faiss"))


def test_a_part_that_hangs_is_stopped(tmp_path, console, monkeypatch):
    asked = []

    def hang(*_, timeout, **__):
        asked.append(timeout)
        raise subprocess.TimeoutExpired("part", timeout)

    monkeypatch.setattr(
        gpu_run, "_describe_machine", lambda: {"gpus": [], "cpu": "x", "versions": {}, "commit": None}
    )
    monkeypatch.setattr(gpu_run.subprocess, "run", hang)
    report = run_gpu(console, tmp_path, SMALL, minutes=8, only=("torch",))
    assert "stopped when the time was used up" in report["parts"]["torch"]["reasons"]["the rest"]
    assert asked[0] <= 8 * 60 - 10


def test_figures_of_two_settings_are_not_mixed(tmp_path, console):
    run_gpu(console, tmp_path, SMALL, minutes=0.01)
    with pytest.raises(ConfigError, match="holds figures of size demo, not published"):
        run_gpu(console, tmp_path, Settings("cpu", "published"), minutes=0.01)
    with pytest.raises(ConfigError, match="no part magic"):
        run_gpu(console, tmp_path, SMALL, minutes=0.01, only=("magic",))


def test_one_failure_does_not_end_a_part_but_a_series(tmp_path):
    def fail():
        raise RuntimeError("out of memory")

    log = Log(tmp_path, "x")
    log.measure("a", fail)
    log.measure_series([("b", lambda: {"value": 1}), ("c", fail), ("d", lambda: {"value": 2})])
    log.measure("e", lambda: {"value": 3})
    assert list(log.figures) == ["b", "e"]
    assert log.reasons["a"] == "It failed: RuntimeError: out of memory"
    assert log.reasons["c"].endswith("The following figures were left out.")
    (tmp_path / "parts" / "x.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        Log(tmp_path, "x")


def test_the_report_has_a_table_and_the_reasons():
    report = {
        "settings": {"size": "published", "length": 128, "device": "cuda"},
        "machine": {"gpus": ["A GPU"], "cpu": "A processor", "versions": {"torch": "2"}, "commit": "abc"},
        "parts": {
            "peak": {
                "figures": {"bf16": {"p50_ms": 1.5, "tflops": 700.0}, "copy": {"p50_ms": 2.0}},
                "reasons": {},
            },
            "gates": {
                "figures": {"gate of fp16": {"passed": False, "failures": ["one"]}},
                "reasons": {"x": "No."},
            },
        },
    }
    text = to_markdown(report)
    assert "| bf16 | 1.5 | 700 |" in text
    assert "| copy | 2 |  |" in text
    assert "| gate of fp16 | NO | one |" in text
    assert "- Not measured: x. No." in text


def test_a_part_finds_the_packages_from_another_folder(tmp_path):
    """As after `python /somewhere/cxr.py bench gpu`: only the first entry of PYTHONPATH names the checkout."""
    environment = gpu_run._make_environment(tmp_path)
    environment["PYTHONPATH"] = environment["PYTHONPATH"].split(os.pathsep)[0]
    command = [sys.executable, "-P", "-c", "import bench.gpu.log; print(bench.gpu.log.__file__)"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(ROOT / "bench" / "gpu" / "log.py"), done.stderr


def make_wheel(folder: Path) -> None:
    info = "tiny_part-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_part-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_part.py", "VALUE = 7\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-part\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_packages_come_from_a_folder_without_a_network(tmp_path, capsys):
    folder, site = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    assert main([str(tmp_path / "out"), "--wheels", str(folder)]) == 2
    assert "holds no wheels" in capsys.readouterr().err
    make_wheel(folder)
    assert install_wheels(folder, site) == ""
    assert (site / "tiny_part.py").is_file()
    (folder / "broken-1.0-py3-none-any.whl").write_text("no zip")
    assert "broken" in install_wheels(folder, tmp_path / "other")


@pytest.mark.parametrize("part", ["onnx", "gates", "tensorrt"])
def test_an_onnxruntime_without_the_provider_is_one_sentence(tmp_path, monkeypatch, part):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert run_part(part, tmp_path, time.time() + 60, Settings("cuda", "demo")) is True
    provider = "Tensorrt" if part == "tensorrt" else "CUDA"
    (reason,) = json.loads((tmp_path / "parts" / f"{part}.json").read_text())["reasons"].values()
    assert f"has no {provider}ExecutionProvider. Put onnxruntime-gpu" in reason


def test_tensorrt_gets_the_options_that_are_published(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    from bench.gpu.onnx_part import _Graphs
    from contract.runtime.session import choose_providers

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    graphs = _Graphs(Settings("cuda", "demo", length=64), dict, tmp_path / "engines")
    (first, options), cuda, _ = choose_providers(graphs._make_config("fusion_study"), "GPU", "0")
    assert (first, cuda) == (names[0], (names[1], {"use_tf32": "0", "device_id": "0"}))
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_layer_norm_fp32_fallback"] == "true"
    assert options["trt_engine_cache_path"] == str(tmp_path / "engines")
    largest = "image_tokens:32x49x128,text_tokens:32x64x128,input_ids:32x64,attention_mask:32x64"
    assert options["trt_profile_max_shapes"] == largest
