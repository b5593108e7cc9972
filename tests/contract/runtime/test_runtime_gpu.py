"""The options of ONNX Runtime's GPU providers: what NVIDIA's backend reads, and a private place for engines."""

import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.errors import ConfigError
from contract.runtime import session as runtime
from contract.runtime.gpu import find_cache, read_cuda, read_tensorrt


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cxr" / "tensorrt"


def test_parameters_get_the_names_of_onnxruntime():
    given = {
        "precision_mode": "BF16",
        "max_workspace_size_bytes": "1024",
        "int8_use_native_calibration_table": "1",
        "trt_layer_norm_fp32_fallback": "true",
        "trt_profile_min_shapes": "x:1x4",
    }
    assert read_tensorrt(given) == {
        "trt_bf16_enable": "1",
        "trt_max_workspace_size": "1024",
        "trt_int8_use_native_calibration_table": "1",
        "trt_layer_norm_fp32_fallback": "true",
        "trt_profile_min_shapes": "x:1x4",
    }
    assert read_tensorrt({"precision_mode": "FP32"}) == {}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"trt_magic": "1"}, "no parameter trt_magic"),
        ({"trt_fp16_enable": "1"}, "no parameter trt_fp16_enable"),  # NVIDIA's backend takes precision_mode
        ({"precision_mode": "FP8"}, "FP32, FP16, BF16, INT8, not FP8"),
    ],
)
def test_what_nvidias_backend_refuses_is_refused_here(parameters, message):
    with pytest.raises(ConfigError, match=message):
        read_tensorrt(parameters)


def test_cuda_graphs_are_refused_with_the_way_to_have_them():
    with pytest.raises(ConfigError, match=r"trt_cuda_graph_enable.*--cuda-graphs"):
        read_tensorrt({"trt_cuda_graph_enable": "true"})
    with pytest.raises(ConfigError, match="enable_cuda_graph"):
        read_cuda({"enable_cuda_graph": "1"})
    assert read_tensorrt({"trt_cuda_graph_enable": "0"}) == {"trt_cuda_graph_enable": "0"}


def test_options_of_cuda_reach_its_provider_also_behind_tensorrt(monkeypatch):
    import onnxruntime

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    listed = [
        {"name": "tensorrt", "parameters": {"precision_mode": "FP16"}},
        {"name": "cuda", "parameters": {"use_tf32": "0"}},
    ]
    config = {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": listed}}}
    assert runtime.choose_providers(config, "GPU", "1") == [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "1", "device_id": "1"}),
        ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"}),
        ("CPUExecutionProvider", {}),
    ]


def test_engines_lie_where_the_config_says_if_that_is_ours_alone(tmp_path):
    wanted = tmp_path / "cache" / "engines"
    assert find_cache(wanted) == str(wanted)
    assert stat.S_IMODE(wanted.stat().st_mode) == 0o700
    options = read_tensorrt({"trt_engine_cache_path": str(wanted), "trt_timing_cache_path": str(wanted)})
    assert set(options.values()) == {str(wanted)}


@pytest.mark.parametrize("fault", ["others may write", "it belongs to another user", "a file is there"])
def test_engines_go_home_otherwise(tmp_path, home, fault, monkeypatch):
    wanted = tmp_path / "cache"
    if fault == "it belongs to another user":  # whom root would trust
        home.mkdir(parents=True)
        wanted.mkdir(mode=0o755)
        look = Path.stat

        def look_as_if(path, **options):
            return SimpleNamespace(st_mode=0o40755, st_uid=12345) if path == wanted else look(path, **options)

        monkeypatch.setattr(Path, "stat", look_as_if)
    elif fault == "a file is there":
        wanted.write_text("")
    else:
        wanted.mkdir()
        wanted.chmod(0o777)
    assert find_cache(wanted) == str(home)
    assert read_tensorrt({"trt_engine_cache_path": str(wanted)}) == {"trt_engine_cache_path": str(home)}


def test_no_place_at_all_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="TensorRT engines cannot be cached"):
        find_cache(tmp_path / "file" / "cache")
