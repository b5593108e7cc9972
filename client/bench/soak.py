"""Clients of a server that is tormented: good ones, whose answers are compared with known ones, and bad ones.

Good clients do what a program does that should run for weeks: ask, wait, ask again after an error. Nothing in them
knows of what is done to the server.
"""

import contextlib
import random
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.channel import Calls, Carrier, ChannelSettings
from client.client import CxrClient
from client.triton import TritonTransport
from contract.errors import ConfigError, CxrError, InputError
from contract.tensors import MODELS

SAME: Final = 1e-3  # a row computes a little differently in a batch of another size
APART: Final = 1e-2  # two cases whose answers differ by less could be taken for each other
_SIDE: Final = 512  # pixels
_WORDS: Final = ("effusion", "fracture", "granuloma", "emphysema", "pneumonia", "scoliosis")
_PAUSE_S: Final = 0.05
_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class SoakCase:
    """An image, a report, or both; None where it has none."""

    image: bytes | None
    report: str | None


def draw_cases(count: int, seed: int = 0) -> list[SoakCase]:
    """Return cases of three kinds whose files all have one size, so that one read as another is noticed."""
    generator = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        coarse = generator.integers(0, 256, (4, 4)).astype(np.uint8)
        image = write_png(np.kron(coarse, np.ones((_SIDE // 4, _SIDE // 4), np.uint8)))
        report = f"FINDINGS: {_WORDS[number % len(_WORDS)]:<9} of grade {number:04d} is seen."
        cases.append(SoakCase(image if number % 3 != 1 else None, report if number % 3 != 2 else None))
    return cases


def ask_expected(client: CxrClient, cases: Sequence[SoakCase]) -> list[NDArray[np.float32]]:
    """Return the answer to each case while nothing disturbs the server.

    Raises:
        ConfigError: Two cases have answers so close that one could pass for the other.
    """
    answers = [_ask(client, case) for case in cases]
    for first, one in enumerate(answers):
        for other in answers[first + 1 :]:
            if float(np.abs(one - other).max()) < APART:
                raise ConfigError("This model answers two of the drawn cases alike: take another seed.")
    return answers


@dataclass
class Record:
    """What one good client saw."""

    good_at: list[float] = field(default_factory=list)  # time.monotonic
    errors: list[tuple[float, str]] = field(default_factory=list)  # time, name of the type
    wrong: int = 0
    untyped: Counter[str] = field(default_factory=Counter)


class GoodClients:
    """Some clients that ask known cases in turn until `close`, each from a thread of its own."""

    def __init__(
        self,
        triton_url: str,
        cases: Sequence[SoakCase],
        expected: Sequence[NDArray[np.float32]],
        carriers: Sequence[Carrier] = ("grpc", "shared_memory", "auto"),
    ) -> None:
        """Start them."""
        self.records = [Record() for _ in carriers]
        self._cases, self._expected = cases, expected
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(triton_url, carrier, record), daemon=True)
            for carrier, record in zip(carriers, self.records, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def have_answers_since(self, moment: float, count: int = 3) -> bool:
        """Return whether each got so many good answers in a row, and no error after them, since a moment."""
        for record in list(self.records):
            last_error = record.errors[-1][0] if record.errors else 0.0
            newer = [at for at in record.good_at[-count:] if at > max(moment, last_error)]
            if len(newer) < count:
                return False
        return True

    def count_errors(self, since: float) -> Counter[str]:
        """Return the errors by type since a moment."""
        return Counter(kind for record in self.records for at, kind in list(record.errors) if at >= since)

    def get_recovery_s(self, moment: float) -> float:
        """Return how long after a moment the last client had good answers for good; 0 where none had an error."""
        recovered = [0.0]
        for record in self.records:
            errors = [at for at, _ in record.errors if at >= moment]
            later = [at for at in record.good_at if errors and at > errors[-1]]
            recovered += [later[0] - moment] if later else []
        return max(recovered)

    def close(self) -> None:
        """Stop asking."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, url: str, carrier: Carrier, record: Record) -> None:
        with CxrClient(url, timeout_s=_TIMEOUT_S, transport=carrier) as client:
            number = 0
            while not self._stop.wait(_PAUSE_S):
                place, number = number % len(self._cases), number + 1
                try:
                    answer = _ask(client, self._cases[place])
                except CxrError as error:
                    record.errors.append((time.monotonic(), type(error).__name__))
                    record.wrong += isinstance(error, InputError)  # the case is good
                except Exception as error:
                    record.errors.append((time.monotonic(), type(error).__name__))
                    record.untyped[type(error).__name__] += 1
                else:
                    record.good_at.append(time.monotonic())
                    record.wrong += bool(np.abs(answer - self._expected[place]).max() > SAME)


class BadClients:
    """Clients that send what is wrong, give up early or cancel, for as long as they are open."""

    def __init__(self, triton_url: str, cases: Sequence[SoakCase], *, count: int = 3, seed: int = 0) -> None:
        """Start them."""
        self.sent = 0
        self.untyped: Counter[str] = Counter()
        self._url, self._cases = triton_url, cases
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed + number),), daemon=True)  # noqa: S311
            for number in range(count)
        ]

    def __enter__(self) -> "BadClients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, chance: random.Random) -> None:
        tricks: list[Callable[[CxrClient, random.Random], Any]] = [
            self._send_bad_file,
            self._send_bad_ids,
            self._give_up,
            self._cancel,
        ]
        with CxrClient(self._url, timeout_s=_TIMEOUT_S) as client:
            while not self._stop.wait(0.01):
                self.sent += 1
                try:
                    chance.choice(tricks)(client, chance)
                except CxrError:
                    pass
                except Exception as error:
                    self.untyped[type(error).__name__] += 1

    def _send_bad_file(self, client: CxrClient, chance: random.Random) -> None:
        good = self._cases[0].image or b""
        file = chance.choice(
            [b"x", b"%PDF-1.7 no image", good[: len(good) // 2], chance.randbytes(len(good))]
        )
        report = chance.choice(["The heart is large.", "\0", "word " * 5000, None])
        client.predict(file, report)

    def _send_bad_ids(self, client: CxrClient, chance: random.Random) -> None:
        ids = np.full((1, 32), chance.choice([10**6, -1]), np.int64)
        mask = np.full((1, 32), chance.choice([1, 7, 0]), np.int64)
        client.predict_tensors(None, ids, mask)

    def _give_up(self, client: CxrClient, chance: random.Random) -> None:
        case = chance.choice(self._cases)
        client.predict(case.image, case.report, timeout_s=chance.uniform(0.002, 0.1))

    def _cancel(self, client: CxrClient, chance: random.Random) -> None:
        transport, calls = TritonTransport(self._url, ChannelSettings("grpc")), Calls()
        case = next(case for case in self._cases if case.image)
        timer = threading.Timer(chance.uniform(0.002, 0.05), calls.cancel)
        timer.start()
        try:
            spec = MODELS["predict_image"]
            inputs = {"image_bytes": np.array([[case.image]], np.object_)}
            transport.infer(
                spec.name, inputs, [entry.name for entry in spec.outputs], _TIMEOUT_S, calls=calls
            )
        finally:
            timer.cancel()
            with contextlib.suppress(CxrError):
                transport.close()


def _ask(client: CxrClient, case: SoakCase) -> NDArray[np.float32]:
    """Return probabilities and embedding of one case, one after the other."""
    prediction = client.predict(case.image, case.report)
    probabilities = [finding.probability for finding in sorted(prediction.findings, key=lambda x: x.key)]
    return np.concatenate([np.asarray(probabilities, np.float32), prediction.embedding])


def write_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an 8-bit grey PNG that is not compressed, so that its size follows from its sides alone."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)
