"""Clients that send token ids which no tokenizer makes, as fast as they can: they cost the others little."""

import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from bench.faults.hostile import Call, GrpcCaller
from bench.load.generator import Request
from bench.load.requests import BytesSender, serialise
from contract.errors import InputError
from contract.tensors import FUSED, LAYOUTS

pytestmark = pytest.mark.e2e

GOOD_CLIENTS = 8
BAD_LOOPS = 2
WINDOW_S = 2.0
ROUNDS = 3
MOST_LINES = 20
LOOP = """
import sys
from bench.load.requests import BytesSender
from contract.errors import InputError
url, path = sys.argv[1:]
send = BytesSender(url, [open(path, "rb").read()], 10.0)
send_count = 0
while True:
    try:
        send(0)
    except InputError:
        send_count += 1
        if send_count % 50 == 0:
            print(send_count, flush=True)
    else:
        sys.exit("answered")
"""


@pytest.fixture(scope="module")
def values(trained) -> dict[str, np.ndarray]:
    sizes, length = trained.bundle.config["sizes"], 32
    generator = np.random.default_rng(5)
    return {
        "pixels": generator.integers(0, 256, (1, 1, sizes["S"], sizes["S"]), dtype=np.uint8),
        "input_ids": generator.integers(5, 100, (1, length), dtype=np.int64),
        "attention_mask": np.ones((1, length), np.int64),
        "image_tokens": np.zeros((1, sizes["N"], sizes["C"]), np.float32),
        "text_tokens": np.zeros((1, length, sizes["C"]), np.float32),
    }


def pick(model: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    spec = LAYOUTS["split"].get(model) or FUSED[model]
    return {tensor.name: values[tensor.name] for tensor in spec.inputs}


ENTRIES = (
    "predict_study_tensors",
    "predict_text_tensors",
    "check_study",
    "check_text",
    "text_encoder",
    "fusion_study",
    "fusion_text",
)
BAD = {
    "negative ids": ({"input_ids": np.full((1, 32), -1)}, "ids from 0 to"),
    "an id of 10^6": ({"input_ids": np.full((1, 32), 10**6)}, "ids from 0 to"),
    "a mask of 7": ({"attention_mask": np.full((1, 32), 7)}, "attention_mask must be 1"),
    "an empty mask": ({"attention_mask": np.zeros((1, 32), np.int64)}, "attention_mask must be 1"),
    "no tokens": (
        {"input_ids": np.zeros((1, 0), np.int64), "attention_mask": np.zeros((1, 0), np.int64)},
        "1 to",
    ),
    "too many tokens": (
        {"input_ids": np.full((1, 4096), 5), "attention_mask": np.ones((1, 4096), np.int64)},
        "1 to",
    ),
    "unequal lengths": ({"attention_mask": np.ones((1, 31), np.int64)}, "one shape"),
}


@pytest.mark.parametrize("model", ENTRIES)
@pytest.mark.parametrize("what", BAD)
def test_every_entry_refuses_what_the_model_cannot_read(model, what, stack, values):
    """Negative ids, a mask of 7, an empty one and no tokens were all answered before."""
    changes, words = BAD[what]
    length, width = changes.get("input_ids", values["input_ids"]).shape[1], values["text_tokens"].shape[2]
    given = {**values, **changes, "text_tokens": np.zeros((1, length, width), np.float32)}
    caller = GrpcCaller(stack.triton_url)
    try:
        assert caller.infer(Call("good", model, pick(model, values)), 20)
        with pytest.raises(InputError, match=words) as caught:
            caller.infer(Call(what, model, pick(model, given)), 20)
    finally:
        caller.close()
    step = {"predict_study_tensors": "check_study", "predict_text_tensors": "check_text"}.get(model, model)
    assert f"{step}: Tensor" in str(caught.value)


def test_a_graph_needs_a_token_for_each_id(stack, values):
    caller = GrpcCaller(stack.triton_url)
    given = {**values, "text_tokens": values["text_tokens"][:, :-1]}
    with pytest.raises(InputError, match="fusion_text: Tensor text_tokens must hold one token for each id"):
        caller.infer(Call("bad", "fusion_text", pick("fusion_text", given)), 20)
    caller.close()


def test_a_bad_request_fails_alone_in_a_batch(stack, values):
    """Requests of one shape that wait together: the bad one is not among them when they run."""
    good = Call("good", "text_encoder", pick("text_encoder", values))
    bad = Call("bad", "text_encoder", pick("text_encoder", {**values, **BAD["negative ids"][0]}))
    outcomes: list[tuple[bool, bool]] = []

    def is_answered(caller: GrpcCaller, call: Call) -> bool:
        try:
            return bool(caller.infer(call, 20))
        except InputError:
            return False

    def send(number: int) -> None:
        caller, is_bad = GrpcCaller(stack.triton_url), bool(number % 2)
        outcomes.extend((is_bad, is_answered(caller, bad if is_bad else good)) for _ in range(10))
        caller.close()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [(False, True)] * 40 + [(True, False)] * 40


def count_rate(send: Request) -> float:
    """Return how many answers a second eight clients get."""
    end, counts = time.monotonic() + WINDOW_S, [0] * GOOD_CLIENTS

    def ask(number: int) -> None:
        while time.monotonic() < end:
            send(number)
            counts[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(GOOD_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / WINDOW_S


@contextmanager
def run_bad_loops(url: str, path: str):
    """Run programs that send one bad request for ever; they are refused."""
    command = [sys.executable, "-c", LOOP, url, path]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(BAD_LOOPS)]
    try:
        assert all(loop.stdout.readline().strip() == "50" for loop in loops)
        yield
        assert all(loop.poll() is None for loop in loops)
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()


@pytest.mark.alone
def test_two_bad_loops_leave_the_others_most_of_their_rate(stack, values, tmp_path):
    """A fifth of it was left before, and a line of the log for each bad call."""
    call = Call("good", "predict_study_tensors", pick("predict_study_tensors", values))
    bad = Call("bad", call.model, pick(call.model, {**values, **BAD["an id of 10^6"][0]}))
    (tmp_path / "bad").write_bytes(serialise(bad.signature, bad.inputs))
    send = BytesSender(stack.triton_url, [serialise(call.signature, call.inputs)], 20.0)
    log = stack.log_dir / "triton.log"
    before = log.read_bytes().count(b"\n")
    ratios = []
    for _ in range(ROUNDS):
        alone = count_rate(send)
        with run_bad_loops(stack.triton_url, str(tmp_path / "bad")):
            ratios.append(count_rate(send) / alone)
    send.close()
    print("rate beside two bad loops / alone:", [round(ratio, 2) for ratio in ratios])
    assert statistics.median(ratios) > 0.5
    assert log.read_bytes().count(b"\n") - before < MOST_LINES
