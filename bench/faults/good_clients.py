"""Good clients that predict. Their answers are compared with known ones. `bench.faults.hostile` has the bad clients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.faults.hostile import GrpcCaller, HostileTraffic, answer_calls, list_callers
from bench.faults.hostile_calls import CASE_INPUTS, list_bad_calls, list_good_calls
from bench.faults.records import Clients, Connect, Record, Request
from bench.load.inputs import Arrays, RawCase, make_case
from client.channel import Carrier
from client.client import CxrClient
from client.triton import TritonTransport
from contract.errors import ConfigError
from contract.image.png import encode_png
from contract.report.tokens import TokenLimits

SAME: Final = 1e-3  # tolerance, because results depend a little on the batch size
APART: Final = 1e-2  # two cases must differ by more, to be told apart
_SIDE: Final = 512  # pixels
_WORDS: Final = ("effusion", "fracture", "granuloma", "emphysema", "pneumonia", "scoliosis")
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


def connect_predictor(
    triton_url: str,
    carrier: Carrier,
    cases: Sequence[SoakCase],
    expected: Sequence[NDArray[np.float32] | None],
) -> Connect:
    """Return what connects a client that sends known cases in turn.

    Args:
        triton_url: host:port of Triton's gRPC service.
        carrier: How it sends tensors.
        cases: The cases.
        expected: The answer to each case. None: its first answer is the reference for later ones.
    """

    @contextmanager
    def connect() -> Iterator[Request]:
        references = list(expected)
        with CxrClient(
            triton_url, timeout_s=_TIMEOUT_S, transport=carrier, shrink=False, tls=False, token=""
        ) as client:

            def request(number: int) -> bool:
                index = number % len(cases)
                answer = _ask(client, cases[index])
                reference = references[index]
                reference = references[index] = answer if reference is None else reference
                return bool(np.abs(answer - reference).max() <= SAME)

            yield request

    return connect


class GoodClients(Clients):
    """Clients that predict, one for each carrier, and others that are added."""

    def __init__(
        self,
        triton_url: str,
        cases: Sequence[SoakCase],
        expected: Sequence[NDArray[np.float32]],
        carriers: Sequence[Carrier] = ("grpc", "shared_memory", "auto"),
    ) -> None:
        """Start them."""
        super().__init__()
        self._url = triton_url
        for carrier in carriers:
            self.add(connect_predictor(triton_url, carrier, cases, expected))

    def invite(self, case: SoakCase, url: str | None = None) -> Record:
        """Add a guest that sends this case over gRPC, perhaps to another address; return its record."""
        connect = connect_predictor(self._url if url is None else url, "grpc", [case], [None])
        return self.add(connect, guest=True)


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
