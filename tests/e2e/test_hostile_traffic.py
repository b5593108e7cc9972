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

from bench.faults.hostile import (
    Call,
    GrpcCaller,
    HostileTraffic,
    answer_calls,
    find_differences,
    list_callers,
)
from bench.faults.hostile_calls import list_bad_calls, list_good_calls
from bench.load.inputs import Arrays
from contract.image.read import load_pixels
from contract.report.text import ReportTokenizer
from contract.report.tokens import TokenLimits
from contract.steps import pack
from contract.tensors import LAYOUTS
from export.configs import Deployment
from export.graphs.fuse import fuse_graphs
from export.publish import publish
from serving.stack import Ports, Stack
from serving.triton import EXIT_TIMEOUT_S
from training.data.rows import get_image

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

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
def cases(trained, images) -> list[Arrays]:
    """Three cases whose bytes differ and whose sizes do not, as files and as tensors."""
    config = trained.bundle.config
    tokens = ReportTokenizer.load(trained.bundle.tokenizer_path).encode(
        [report.decode().partition(": ")[2] for report in REPORTS], config["max_length"]
    )
    return [
        {
            "image_bytes": pack([image]),
            "report": pack([report]),
            "pixels": load_pixels(image, size=config["sizes"]["S"])[None],
            "input_ids": tokens.input_ids[number : number + 1],
            "attention_mask": tokens.attention_mask[number : number + 1],
        }
        for number, (image, report) in enumerate(zip(images, REPORTS, strict=True))
    ]


def make_stack(repository: Path, root: Path) -> Stack:
    return Stack(repository, root / "store", ports=Ports.free(), log_dir=root / "logs", http_inference=True)


def read_pending(stack: Stack) -> float:
    with urllib.request.urlopen(stack.metrics_url, timeout=5) as answer:
        text = answer.read().decode()
    return sum(
        float(x) for x in re.findall(r"^nv_inference_pending_request_count\{.*\} (\S+)$", text, re.MULTILINE)
    )


def wait_for(condition, timeout_s: float = 60.0) -> bool:
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
    layout, bad_calls, cut_calls, repositories, trained, cases, tmp_path
):
    config = trained.bundle.config
    limits = TokenLimits(config["model"]["vocabulary_size"], config["max_length"])
    bad = list_bad_calls(layout, cases[0], limits)
    stack = make_stack(repositories[layout], tmp_path)
    with stack:
        stack.wait_ready(120)
        check_traffic(stack, list_good_calls(cases), bad, bad_calls, cut_calls)
        began = time.monotonic()
    assert time.monotonic() - began < EXIT_TIMEOUT_S + 2
    log = (tmp_path / "logs" / "triton.log").read_text(errors="replace")
    left = re.findall(r"Found (\d+) model versions that have in-flight inferences", log)
    assert left
    assert set(left) == {"0"}


def check_traffic(stack: Stack, asked: list[Call], bad: list[Call], bad_calls: int, cut_calls: int) -> None:
    caller = GrpcCaller(stack.triton_url)
    good = answer_calls(asked, caller)
    for one in good:  # an answer to another case would be seen
        others = [x for x in good if x.model == one.model and x.name != one.name]
        assert all(find_differences(x, one.expected) for x in others)
    regions, pid = count_client_regions(), stack.pids["Triton"]
    callers = list_callers(stack.triton_url, stack.http_url)
    traffic = HostileTraffic(callers, good, bad, clients=CLIENTS, seed=bad_calls)
    traffic.run(bad_calls=len(bad), cut_calls=50)  # what a server opens once is open
    descriptors = count_descriptors(stack)
    report = traffic.run(bad_calls=bad_calls, cut_calls=cut_calls)
    print(report.describe())
    assert not report.wrong
    assert not report.unavailable
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
