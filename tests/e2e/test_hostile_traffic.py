"""Bad requests, deadlines and cancellations beside good requests: nothing is lost, mixed up or left behind."""

import contextlib
import io
import os
import re
import time
import urllib.request
from pathlib import Path

import numpy as np
import pydicom
import pytest

from cli.cases import get_image
from client.bench.hostile import (
    Call,
    GrpcCaller,
    HostileTraffic,
    answer_calls,
    find_differences,
    list_callers,
)
from contract.dicom import load_pixels
from contract.steps import pack
from contract.tensors import LAYOUTS
from contract.text import ReportTokenizer
from export.configs import Deployment
from export.fuse import fuse_graphs
from export.publish import publish
from serving.stack import Ports, Stack
from serving.triton import EXIT_TIMEOUT_S

pytestmark = pytest.mark.e2e

REPORTS = tuple(
    text.ljust(72).encode()
    for text in (
        "FINDINGS: The heart is enlarged. There is a left pleural effusion.",
        "FINDINGS: The lungs are clear. No pneumothorax, and no effusion.",
        "FINDINGS: Opacity of the right lower lobe, likely pneumonia.",
    )
)
CLIENTS = 8
AMOUNTS = [
    pytest.param(300, 1000, id="300 bad and 1,000 short calls"),
    pytest.param(2000, 5000, id="2,000 bad and 5,000 short calls", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def repositories(trained, tmp_path_factory) -> dict[str, Path]:
    """The same model, published in both layouts."""
    root = tmp_path_factory.mktemp("layouts")
    names = LAYOUTS["split"]
    graphs = {
        name: trained.repository / name / "1" / "model.onnx"
        for name, spec in names.items()
        if spec.backend == "onnxruntime"
    }
    fused = fuse_graphs(graphs, root / "graphs")
    publish(trained.bundle, fused, root / "fused", Deployment(layout="fused"))
    return {"split": trained.repository, "fused": root / "fused"}


@pytest.fixture(scope="module")
def images(trained) -> list[bytes]:
    """Three radiographs of equal size, byte for byte as long as each other."""
    row = next(row for row in trained.test_rows if row["image_paths"])
    dataset = pydicom.dcmread(get_image(row))
    files = []
    for turn in (lambda x: x, np.flipud, np.fliplr):
        copy = pydicom.dcmread(get_image(row))
        copy.PixelData = np.ascontiguousarray(turn(dataset.pixel_array)).tobytes()
        file = io.BytesIO()
        copy.save_as(file)
        files.append(file.getvalue())
    assert len({len(data) for data in files}) == 1
    return files


@pytest.fixture(scope="module")
def tensors(trained, images) -> list[dict[str, np.ndarray]]:
    config = trained.bundle.config
    tokens = ReportTokenizer.load(trained.bundle.tokenizer_path).encode(
        [report.decode().partition(": ")[2] for report in REPORTS], config["max_length"]
    )
    return [
        {
            "pixels": load_pixels(image, size=config["sizes"]["S"])[None],
            "input_ids": tokens.input_ids[number : number + 1],
            "attention_mask": tokens.attention_mask[number : number + 1],
        }
        for number, image in enumerate(images)
    ]


def make_stack(repository: Path, root: Path) -> Stack:
    return Stack(repository, root / "store", ports=Ports.free(), log_dir=root / "logs", http_inference=True)


def pick(model: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    specs = {name: spec for layout in LAYOUTS.values() for name, spec in layout.items()}
    return {tensor.name: values[tensor.name] for tensor in specs[model].inputs}


def list_good(images, tensors) -> list[Call]:
    """Every kind of question, each with three cases whose bytes differ and whose sizes do not."""
    cases = [
        {"image_bytes": pack([image]), "report": pack([report]), **values}
        for image, report, values in zip(images, REPORTS, tensors, strict=True)
    ]
    names = [name for name, spec in LAYOUTS["split"].items() if spec.backend == "ensemble"]
    return [
        Call(f"{name} {number}", name, pick(name, case))
        for number, case in enumerate(cases)
        for name in names
    ]


def list_bad_ids(layout: str, good: dict[str, np.ndarray], limits: tuple[int, int]) -> list[Call]:
    """Token ids and masks that no tokenizer makes, for every entry that takes ids."""
    vocabulary, length = limits
    ids, mask = good["input_ids"], good["attention_mask"]
    changes = {
        "an id of 10^6": {"input_ids": np.full_like(ids, 10**6)},
        "the first id that is none": {"input_ids": np.full_like(ids, vocabulary)},
        "negative ids": {"input_ids": np.full_like(ids, -1)},
        "a mask of 7": {"attention_mask": np.full_like(mask, 7)},
        "an empty mask": {"attention_mask": np.zeros_like(mask)},
        "padding first": {"attention_mask": np.ascontiguousarray(mask[:, ::-1])},
        "no tokens": {"input_ids": ids[:, :0], "attention_mask": mask[:, :0]},
        "a token too many": {
            "input_ids": np.full((1, length + 1), 5, np.int64),
            "attention_mask": np.ones((1, length + 1), np.int64),
        },
        "a huge array": {
            "input_ids": np.full((1, 100_000), 5, np.int64),
            "attention_mask": np.ones((1, 100_000), np.int64),
        },
        "unequal lengths": {"attention_mask": np.ones((1, 5), np.int64)},
    }
    graphs = (
        ("text_encoder",) if layout == "split" else ("fused_study", "fused_text")
    )  # called without an ensemble
    models = ("predict_study_tensors", "predict_text_tensors", "check_text", *graphs)
    return [
        Call(f"{what} to {model}", model, pick(model, {**good, **change}))
        for what, change in changes.items()
        for model in models
    ]


def list_bad(layout: str, images, tensors, limits) -> list[Call]:
    image, report = pack(images[:1]), pack(REPORTS[:1])
    bad_images = {
        "a text": b"no image " * 20,
        "nothing": b"",
        "half a file": images[0][: len(images[0]) // 2],
        "a PDF": b"%PDF-1.7\n" + bytes(500),
    }
    bad_reports = {
        "blanks": b"   ",
        "broken XML": b"<eCitation><MedlineCitation>",
        "no text": b"\xff\xfe\x00",
    }
    return [
        *(
            Call(f"{what} as image", model, pick(model, {"image_bytes": pack([data]), "report": report}))
            for what, data in bad_images.items()
            for model in ("predict_study", "predict_study", "predict_image")
        ),
        *(
            Call(f"{what} as report", model, pick(model, {"image_bytes": image, "report": pack([data])}))
            for what, data in bad_reports.items()
            for model in ("predict_study", "predict_study", "predict_text")
        ),
        Call("nothing right", "predict_study", {"image_bytes": pack([b"no image"]), "report": pack([b" "])}),
        *list_bad_ids(layout, tensors[0], limits),
    ]


def read_pending(stack: Stack) -> float:
    with urllib.request.urlopen(stack.metrics_url, timeout=5) as answer:
        text = answer.read().decode()
    return sum(
        float(x) for x in re.findall(r"^nv_inference_pending_request_count\{.*\} (\S+)$", text, re.MULTILINE)
    )


def wait_for(condition, timeout_s: float = 15.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


def count_descriptors(stack: Stack) -> int:
    return len(list(Path(f"/proc/{stack.pids['Triton']}/fd").iterdir()))


def count_client_regions() -> int:
    """Return how many descriptors of regions this process holds; other programs may have regions of their own."""
    files = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            files.append(os.readlink(entry))
    return sum(file.startswith("/dev/shm/cxr_client_") for file in files)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("bad_calls", "cut_calls"), AMOUNTS)
def test_good_answers_among_hostile_calls(
    layout, bad_calls, cut_calls, repositories, trained, images, tensors, tmp_path
):
    config = trained.bundle.config
    limits = (config["model"]["vocabulary_size"], config["max_length"])
    stack = make_stack(repositories[layout], tmp_path)
    with stack:
        stack.wait_ready(120)
        caller = GrpcCaller(stack.triton_url)
        good = answer_calls(list_good(images, tensors), caller)
        for one in good:  # an answer to another case would be seen
            others = [x for x in good if x.model == one.model and x.name != one.name]
            assert all(find_differences(x, one.expected) for x in others)
        bad = list_bad(layout, images, tensors, limits)
        regions, pid = count_client_regions(), stack.pids["Triton"]
        callers = list_callers(stack.triton_url, stack.http_url)
        traffic = HostileTraffic(callers, good, bad, clients=CLIENTS, seed=bad_calls)
        traffic.run(bad_calls=len(bad), cut_calls=50)  # what a server opens once is open
        descriptors = count_descriptors(stack)
        report = traffic.run(bad_calls=bad_calls, cut_calls=cut_calls)
        print(layout, report.describe())
        assert not report.wrong
        assert not report.unanswered
        assert not report.not_refused
        assert report.refused == bad_calls
        assert sum(report.cut.values()) == cut_calls
        assert report.cut["ended"] > cut_calls / 10
        assert report.good > 30
        assert stack.pids["Triton"] == pid
        assert wait_for(lambda: read_pending(stack) == 0)
        assert wait_for(lambda: count_client_regions() <= regions)
        assert wait_for(lambda: count_descriptors(stack) <= descriptors + CLIENTS)
        again = answer_calls(good, caller)
        assert not [x.name for x, y in zip(good, again, strict=True) if find_differences(x, y.expected)]
        caller.close()
        began = time.monotonic()
    assert time.monotonic() - began < EXIT_TIMEOUT_S + 2
    log = (tmp_path / "logs" / "triton.log").read_text(errors="replace")
    left = re.findall(r"Found (\d+) model versions that have in-flight inferences", log)
    assert left
    assert set(left) == {"0"}
