"""Good clients of a server under faults. Their answers are compared with known ones.

They behave like a program that must run for weeks: they send a request, wait, and try again after an error. They do not
know about the faults. `bench.faults.hostile` has the bad clients.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.faults.hostile import GrpcCaller, HostileTraffic, answer_calls, list_callers
from bench.faults.hostile_calls import CASE_INPUTS, list_bad_calls, list_good_calls
from bench.load.inputs import Arrays, RawCase, make_case
from client.channel import Carrier
from client.client import CxrClient
from client.triton import TritonTransport
from contract.errors import ConfigError, CxrError, InputError
from contract.image.png import encode_png
from contract.report.tokens import TokenLimits

SAME: Final = 1e-3  # tolerance, because results depend a little on the batch size
APART: Final = 1e-2  # two cases must differ by more, to be told apart
_SIDE: Final = 512  # pixels
_WORDS: Final = ("effusion", "fracture", "granuloma", "emphysema", "pneumonia", "scoliosis")
_PAUSE_S: Final = 0.05
_TIMEOUT_S: Final = 5.0
_CALM_TIMEOUT_S: Final = 30.0
_HOSTILE_TIMEOUT_S: Final = 20.0  # a longer call among bad clients counts as unanswered


@dataclass(frozen=True)
class SoakCase:
    """An image, a report, or both; None where it has none."""

    image: bytes | None
    report: str | None


def draw_cases(count: int, seed: int = 0) -> list[SoakCase]:
    """Return cases of three kinds whose files have equal size, so that a mix-up of two cases is noticed."""
    generator = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        image = draw_image(_SIDE, generator)
        report = f"FINDINGS: {_WORDS[number % len(_WORDS)]:<9} of grade {number:04d} is seen."
        cases.append(SoakCase(image if number % 3 != 1 else None, report if number % 3 != 2 else None))
    return cases


def draw_image(side: int, generator: np.random.Generator) -> bytes:
    """Return an uncompressed PNG of 16 drawn squares. `side`, in pixels, is a multiple of 4."""
    coarse = generator.integers(0, 256, (4, 4)).astype(np.uint8)
    return encode_png(np.kron(coarse, np.ones((side // 4, side // 4), np.uint8)), level=0)


def ask_expected(client: CxrClient, cases: Sequence[SoakCase]) -> list[NDArray[np.float32]]:
    """Return the answer to each case from an undisturbed server.

    Raises:
        ConfigError: The answers to two cases are too similar to tell them apart.
    """
    answers = [_ask(client, case) for case in cases]
    for first, one in enumerate(answers):
        for other in answers[first + 1 :]:
            if float(np.abs(one - other).max()) < APART:
                raise ConfigError("This model answers two of the drawn cases alike. Use another seed.")
    return answers


@dataclass(eq=False)
class Record:
    """The results of one good client."""

    good_at: list[float] = field(default_factory=list)  # time.monotonic
    errors: list[tuple[float, str]] = field(default_factory=list)  # time, name of the type
    wrong: int = 0
    untyped: Counter[str] = field(default_factory=Counter)


@dataclass
class _Group:
    """Clients that stop together."""

    records: list[Record] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


class GoodClients:
    """Clients that send known cases in turn until `close`, each in its own thread.

    `records` belong to the current clients, `gone` to dismissed guests.
    """

    def __init__(
        self,
        triton_url: str,
        cases: Sequence[SoakCase],
        expected: Sequence[NDArray[np.float32]],
        carriers: Sequence[Carrier] = ("grpc", "shared_memory", "auto"),
    ) -> None:
        """Start them."""
        self.records: list[Record] = []
        self.gone: list[Record] = []
        self._url = triton_url
        self._residents = _Group()
        self._guests = _Group()
        for carrier in carriers:
            self._start(self._residents, carrier, cases, list(expected))

    def invite(self, case: SoakCase) -> None:
        """Add a client that sends this case over gRPC. Its first answer is the reference for later ones."""
        self._start(self._guests, "grpc", [case], [None])

    def dismiss(self) -> None:
        """Stop the invited clients."""
        self._guests.end()
        self.records, self.gone = (
            [record for record in self.records if record not in self._guests.records],
            self.gone + self._guests.records,
        )
        self._guests = _Group()

    def have_answers_since(self, moment: float, count: int = 3) -> bool:
        """Return whether each client got `count` good answers in a row since a moment, and no error after them."""
        for record in list(self.records):
            last_error = record.errors[-1][0] if record.errors else 0.0
            newer = [at for at in record.good_at[-count:] if at > max(moment, last_error)]
            if len(newer) < count:
                return False
        return True

    def count_errors(self, since: float) -> Counter[str]:
        """Return the number of errors by type since a moment."""
        return Counter(kind for record in self.records for at, kind in list(record.errors) if at >= since)

    def get_recovery_s(self, moment: float) -> float:
        """Return the seconds from a moment until all clients had good answers again; 0 without errors."""
        recovered = [0.0]
        for record in self.records:
            errors = [at for at, _ in record.errors if at >= moment]
            later = [at for at in record.good_at if errors and at > errors[-1]]
            recovered += [later[0] - moment] if later else []
        return max(recovered)

    def close(self) -> None:
        """Stop all clients."""
        self.dismiss()
        self._residents.end()

    def _start(
        self,
        group: "_Group",
        carrier: Carrier,
        cases: Sequence[SoakCase],
        expected: list[NDArray[np.float32] | None],
    ) -> None:
        record = Record()
        arguments = (carrier, cases, expected, record, group.stop)
        thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self.records.append(record)
        group.records.append(record)
        group.threads.append(thread)
        thread.start()

    def _run(
        self,
        carrier: Carrier,
        cases: Sequence[SoakCase],
        expected: list[NDArray[np.float32] | None],
        record: Record,
        stop: threading.Event,
    ) -> None:
        with CxrClient(
            self._url, timeout_s=_TIMEOUT_S, transport=carrier, shrink=False, tls=False, token=""
        ) as client:
            number = 0
            while not stop.wait(_PAUSE_S):
                index, number = number % len(cases), number + 1
                try:
                    answer = _ask(client, cases[index])
                except CxrError as error:
                    record.errors.append((time.monotonic(), type(error).__name__))
                    record.wrong += isinstance(error, InputError)  # the case is good
                except Exception as error:
                    record.errors.append((time.monotonic(), type(error).__name__))
                    record.untyped[type(error).__name__] += 1
                else:
                    record.good_at.append(time.monotonic())
                    reference = expected[index]
                    reference = expected[index] = answer if reference is None else reference
                    record.wrong += bool(np.abs(answer - reference).max() > SAME)


def prepare_traffic(
    triton_url: str, cases: Sequence[SoakCase], layout: str, limits: TokenLimits
) -> HostileTraffic:
    """Return hostile traffic for a server, over gRPC and shared memory. The server must be undisturbed meanwhile.

    Args:
        triton_url: host:port of its gRPC service.
        cases: Cases; those with image and report are used.
        layout: How the model is served, a key of `contract.tensors.LAYOUTS`.
        limits: Limits of the served model's token ids.

    Raises:
        InputError, ServiceError: The server's errors.
    """
    transport, caller = TritonTransport(triton_url), GrpcCaller(triton_url)

    def ask(model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        return transport.infer(model, inputs, outputs, _CALM_TIMEOUT_S)

    try:
        known = [
            make_case(ask, CASE_INPUTS, RawCase(case.image, case.report.encode()))
            for case in cases
            if case.image is not None and case.report is not None
        ]
        good = answer_calls(list_good_calls(known), caller, _CALM_TIMEOUT_S)
    finally:
        transport.close()
        caller.close()
    bad = list_bad_calls(layout, known[0], limits)
    return HostileTraffic(list_callers(triton_url), good, bad, timeout_s=_HOSTILE_TIMEOUT_S)


def _ask(client: CxrClient, case: SoakCase) -> NDArray[np.float32]:
    """Return the concatenated probabilities and embedding of one case."""
    prediction = client.predict(case.image, case.report)
    probabilities = [finding.probability for finding in sorted(prediction.findings, key=lambda x: x.key)]
    return np.concatenate([np.asarray(probabilities, np.float32), prediction.embedding])
