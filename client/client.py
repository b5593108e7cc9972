"""`CxrClient`: one case in, findings, similar cases or an explanation out.

    image bytes, report ──> Triton (predict_study | predict_image | predict_text) ──> Prediction
    embedding ──────────> retrieval sidecar ──> similar cases

Every call has a deadline, shared by all that it sends. Errors are those of `contract.errors`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from client.channel import Calls, Carrier, ChannelSettings, Compression
from client.deadline import Deadline, check_timeout
from client.exchange import check_tensors, count_images, make_inputs, read_answer, read_batch
from client.indexing import index_cases, require_unchanged
from client.inputs import ImageSource, ReportSource, StudyImages
from client.many import predict_in_order
from client.prompt_scores import FindingScore, score_findings
from client.results import (
    BatchPrediction,
    CaseInput,
    Health,
    IndexResult,
    Prediction,
    SearchResult,
    ServedModel,
    SimilarCase,
)
from client.retrieval import IndexInfo, RetrievalTransport, check_search
from client.served import ServedModels, list_outputs, require_views
from client.shrink import shrink_inputs
from client.triton import Answer, Arrays, TritonTransport
from contract.bundle import Bundle, require_same_fingerprint
from contract.errors import BusyError, CxrError, InputError, UnavailableError
from contract.probe_case import PROBE_IMAGE, PROBE_REPORT
from contract.report.tokens import TokenLimits
from contract.tensors import ADDED_OUTPUTS

if TYPE_CHECKING:
    from client.explanation import Explanation

_IN_FLIGHT: Final = 8  # requests at once when there are many cases: enough to fill Triton's batches
_ATTEMPTS: Final = 3  # at an answer whose model was replaced before anything could be asked about it


class CxrClient:
    """Client of one Triton and one retrieval sidecar; may be used by several threads at once."""

    def __init__(
        self,
        triton_url: str = "127.0.0.1:8001",
        retrieval_url: str = "127.0.0.1:8005",
        timeout_s: float = 10.0,
        *,
        transport: Carrier = "auto",
        compression: Compression = "none",
        keepalive_s: float | None = None,
        shrink: bool = True,
    ) -> None:
        """Describe the servers; nothing is sent yet.

        Args:
            triton_url: host:port of Triton's gRPC service, or an address as gRPC writes it (unix:/path).
            retrieval_url: host:port of the retrieval sidecar.
            timeout_s: Default deadline of each call, in seconds.
            transport: How tensors reach Triton: "grpc"; "shared_memory" on one host; "cuda_shared_memory" for
                preprocessed inputs and a GPU; "auto" takes shared memory for large calls to a loopback address.
                A server that does not take shared memory is called over gRPC.
            compression: "none", "gzip" or "deflate" of gRPC messages. It pays off on networks below about 12 MB/s
                with images that are not compressed already; on one host it always costs.
            keepalive_s: Seconds between pings of idle connections, at least 10; see `client.channel`. None: no pings.
            shrink: Read large images here and send the pixels that the model reads, with the same answer
                (`client.shrink`); False sends every file whole. Needs the `image` extra: without it, files go whole.

        Raises:
            ConfigError: A setting does not exist, an address is none, or the time-out is no number above 0.
        """
        self._timeout_s = check_timeout(timeout_s)
        self._shrink = shrink
        self._triton = TritonTransport(triton_url, ChannelSettings(transport, compression, keepalive_s))
        self._retrieval = RetrievalTransport(retrieval_url)
        self._models = ServedModels(self._triton.read_model)

    def __repr__(self) -> str:
        """Return the addresses."""
        return f"{type(self).__name__}({self._triton.url!r}, {self._retrieval.url!r})"

    def predict(
        self,
        image: StudyImages | None = None,
        report: ReportSource | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Prediction:
        """Predict the 22 finding categories of a radiograph, a report, or both.

        What is unusual but readable (a lateral view, another part of the body, several frames, an image without
        contrast, a report too long to be read whole) is answered; `Prediction.warnings` then says what it is. It also
        says so when the model was trained on phantoms.

        Args:
            image: A DICOM, PNG or JPEG file by its path (text or `Path`) or as bytes; an array, (H, W) uint8 or
                uint16 with 0 for black or (H, W, 3) uint8; a pydicom data set; or a Pillow image. Or a list or tuple
                of 1 to 4 of them: the images of one study, the frontal one first, which the model reads together.
            report: Text with or without section headings; a file (text or Open-i XML) as `Path` or bytes.
            timeout_s: Deadline in seconds; None means the client's own.

        Raises:
            InputError: An image or the report cannot be read; the message names the step and the cause.
            ArtifactError: Several images were given, but an older version published the served models.
            UnavailableError, DeadlineError, ServerError: The server is down, slow or failed.
        """
        deadline = self._start(timeout_s)
        return self._predict(image, report, deadline)

    def predict_tensors(
        self,
        pixels: NDArray[np.uint8] | None = None,
        input_ids: NDArray[np.int64] | None = None,
        attention_mask: NDArray[np.int64] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> BatchPrediction:
        """Predict a batch of cases that the caller preprocessed with `contract.image.read` and `contract.report.text`.

        Args:
            pixels: (B, 1, S, S) uint8, B at most 32, S the `image_size` of `info()`.
            input_ids: (B, L) int64, L at most the `max_length` of `info()`.
            attention_mask: (B, L) int64, 1 on tokens and 0 on the padding behind them.
            timeout_s: Deadline in seconds; None means the client's own.

        Raises:
            TensorError: A tensor has the wrong type or shape, or the model cannot read the ids or the mask.
            ConfigError: No tensor was given, or token ids without their mask.
            ServiceError: As in `predict`.
        """
        deadline = self._start(timeout_s)
        served = self._models.require(deadline.left)
        limits = TokenLimits(served.vocabulary_size, served.max_length)
        kind, inputs = check_tensors(
            pixels, input_ids, attention_mask, image_size=served.image_size, limits=limits
        )
        name = f"predict_{kind}_tensors"
        answer, model = self._ask(name, inputs, list_outputs(name, served), deadline)
        return read_batch(kind, model, answer)

    def predict_many(
        self, cases: Iterable[CaseInput], *, in_flight: int = _IN_FLIGHT, timeout_s: float | None = None
    ) -> Iterator[tuple[CaseInput, Prediction | InputError]]:
        """Predict cases in their order with a few requests in flight.

        Closing the iterator before its end cancels the requests in flight, here and at the server.

        Args:
            cases: Read as they are needed; at most twice as many as are in flight are held in memory.
            in_flight: Requests at the server at once, at least 1.
            timeout_s: Deadline of each request, in seconds; None means the client's own.

        Yields:
            Each case with its prediction, or with the error of one that the model refused.

        Raises:
            ConfigError: `in_flight` is below 1.
            ServiceError: The server is down, busy, slow or failed.
        """
        limit_s = self._limit(timeout_s)

        def predict(case: CaseInput, calls: Calls) -> Prediction:
            if case.image is None and case.report is None:
                raise InputError("The case holds neither an image nor a report.")
            return self._predict(case.image, case.report, Deadline(limit_s), calls)

        return predict_in_order(predict, cases, in_flight)

    def search(
        self,
        image: StudyImages | None = None,
        report: ReportSource | None = None,
        *,
        k: int = 5,
        exclude_studies: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> SearchResult:
        """Find the stored cases most similar to a radiograph, a report, a sentence or a whole study.

        Args:
            image: As in `predict`.
            report: As in `predict`; a single sentence will do.
            k: How many cases, 1 to 1000.
            exclude_studies: Study ids to leave out, such as the query's own.
            timeout_s: Deadline of both calls together, in seconds.

        Returns:
            At most k cases, best first, and the warnings about the query, as in `predict`.

        Raises:
            FingerprintError: The stored cases were embedded by another model.
            InputError: As in `predict`, or as in `search_embedding`.
            ServiceError: As in `predict`.
        """
        deadline = self._start(timeout_s)
        excluded = check_search(k, exclude_studies)  # before anything is sent
        query = self._predict(image, report, deadline)
        cases = self._retrieval.search(query.fingerprint, query.embedding, k, excluded, deadline.left())
        return SearchResult(tuple(cases), query.warnings, query.trained_on)

    def search_embedding(
        self,
        embedding: NDArray[np.float32],
        *,
        fingerprint: str,
        k: int = 5,
        exclude_studies: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> list[SimilarCase]:
        """Find the cases most similar to an embedding, (D,) of unit length, made by model `fingerprint`.

        Raises:
            InputError: `k` is none of 1 to 1000, or `exclude_studies` is one string instead of several.
        """
        limit = self._limit(timeout_s)
        return self._retrieval.search(fingerprint, embedding, k, exclude_studies, limit)

    def score_findings(
        self, findings: Sequence[str], prediction: Prediction, *, timeout_s: float | None = None
    ) -> tuple[FindingScore, ...]:
        """Score findings in free words, such as "rib fracture", against a prediction; see `client.prompt_scores`.

        Raises:
            FingerprintError: The prediction was made by another model than is served.
            InputError: A finding is empty, too long, a whole sentence, or has no word that the model knows.
            ConfigError: No finding was given.
            ServiceError: As in `predict`.
        """
        deadline = self._start(timeout_s)
        model = self.info(timeout_s=deadline.left())

        def infer(name: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
            if not name.startswith("predict_"):
                return self._triton.infer(name, inputs, outputs, deadline.left())
            answer, answering = self._ask(name, inputs, outputs, deadline)
            require_unchanged(prediction.fingerprint, answering.fingerprint)
            return answer

        return score_findings(findings, prediction, model, infer)

    def index(
        self,
        cases: Iterable[CaseInput],
        *,
        progress: Callable[[int], None] | None = None,
        timeout_s: float | None = None,
    ) -> IndexResult:
        """Embed cases through the served model and store them for search.

        A case that cannot be read, or that the model or the sidecar refuses, is reported and the rest goes on. A
        case whose id is stored already is replaced, so that an interrupted run can be repeated.

        Args:
            cases: Read as they are needed; only a few are held in memory.
            progress: Called with the number of cases done.
            timeout_s: Deadline of each call, in seconds.

        Raises:
            FingerprintError: The server switched to another model under way, or the store holds too many.
            ServiceError: A server is down or failed; what was stored before stays.
        """
        limit = self._limit(timeout_s)
        model = self.info(timeout_s=limit)
        return index_cases(
            cases,
            model,
            predict=partial(self.predict_many, timeout_s=limit),
            add=lambda part: self._retrieval.add(model.fingerprint, part, limit),
            progress=progress,
        )

    def explain(
        self,
        bundle: Bundle,
        image: ImageSource | None = None,
        report: ReportSource | None = None,
        *,
        label: str | None = None,
        steps: int = 32,
    ) -> "Explanation":
        """Explain one finding with the served model's bundle; see `client.explain.explain`.

        Raises:
            FingerprintError: The bundle is not the served model.
            ConfigError: The `explain` extra is not installed.
        """
        from client.explain import explain

        served = self.info().fingerprint
        require_same_fingerprint(
            served, bundle.fingerprint, expected_from="the served model", found_from=str(bundle.path)
        )
        return explain(bundle, image=image, report=report, label=label, steps=steps)

    def info(self, *, timeout_s: float | None = None) -> ServedModel:
        """Return what the served model says about itself now; a server may have switched to a newer one."""
        return self._models.read_latest(self._limit(timeout_s))

    def index_info(self, *, timeout_s: float | None = None) -> IndexInfo:
        """Return what the index holds and which model it belongs to."""
        return self._retrieval.read_info(self._limit(timeout_s))

    def delete(self, ids: Sequence[str], *, timeout_s: float | None = None) -> int:
        """Forget stored cases for good; return how many were there. InputError: one string instead of several."""
        return self._retrieval.delete(ids, self._limit(timeout_s))

    def health(self, *, timeout_s: float | None = None) -> Health:
        """Ask both servers whether they are ready, Triton by real inferences; never raises for one that is not.

        A full queue counts as ready: the server works.
        """
        limit = self._limit(timeout_s)
        triton, fingerprint, trained_on = self._triton.check_ready(limit), None, None
        if triton is None:
            try:
                model = self.info(timeout_s=limit)
                fingerprint, trained_on = model.fingerprint, model.trained_on
                self._infer_probes(limit)
            except BusyError:
                pass
            except CxrError as error:
                triton = str(error)
        try:
            stored = self._retrieval.read_info(limit, fingerprint or "")
        except CxrError as error:
            return Health(triton, str(error), fingerprint, trained_on=trained_on)
        trouble = None
        if fingerprint and stored.fingerprint and stored.fingerprint != fingerprint:
            trouble = (
                f"The index is of model {stored.fingerprint[:12]}, Triton serves {fingerprint[:12]}: run "
                "`cxr index TABLE`, which makes the index of this model beside the other one."
            )
        elif stored.damaged_count:
            trouble = (
                f"{stored.damaged_count} cases are damaged and left out: index them again with `cxr index TABLE` "
                "(the sidecar's log names the rows)."
            )
        return Health(triton, trouble, fingerprint, stored.case_count, trained_on)

    def _infer_probes(self, timeout_s: float) -> None:
        """Ask for a study, an image and a report: loaded models may be unable to infer."""
        for image, report in ((PROBE_IMAGE, PROBE_REPORT), (PROBE_IMAGE, None), (None, PROBE_REPORT)):
            self._predict(image, report, Deadline(timeout_s))

    def close(self) -> None:
        """Close every connection."""
        self._triton.close()
        self._retrieval.close()

    def __enter__(self) -> "CxrClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limit(self, timeout_s: float | None) -> float:
        """Return the deadline of a call in seconds: its own, or else the client's."""
        return self._timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _start(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._limit(timeout_s))

    def _predict(
        self,
        image: StudyImages | None,
        report: ReportSource | None,
        deadline: Deadline,
        calls: Calls | None = None,
    ) -> Prediction:
        kind, inputs = make_inputs(image, report)
        name = f"predict_{kind}"
        served = self._models.require(deadline.left)
        if count_images(inputs) > served.most_views:
            served = self._require_views(inputs, deadline)
        outputs = list_outputs(name, served)
        shrunk = shrink_inputs(inputs, served) if self._shrink else None
        if shrunk is not None:
            answer, model = self._ask(name, shrunk.inputs, outputs, deadline, calls)
            if shrunk.fits(model):
                return shrunk.restore_notes(read_answer(kind, model, answer))
        answer, model = self._ask(name, inputs, outputs, deadline, calls)
        return read_answer(kind, model, answer)

    def _ask(
        self,
        name: str,
        inputs: Arrays,
        outputs: Sequence[str],
        deadline: Deadline,
        calls: Calls | None = None,
    ) -> tuple[Answer, ServedModel]:
        """Run one of `predict_*`; return its answer and what the very version that gave it says about itself."""
        self._models.require(deadline.left)
        for _ in range(_ATTEMPTS):
            sent_at = time.monotonic()
            answer = self._infer(name, inputs, outputs, deadline, calls)
            model = self._models.resolve(name, answer.model_version, sent_at, deadline.left)
            if model is not None:
                return answer, model
        raise UnavailableError(
            "Triton switches from model to model: try again when its repository is at rest."
        )

    def _infer(
        self, name: str, inputs: Arrays, outputs: Sequence[str], deadline: Deadline, calls: Calls | None
    ) -> Answer:
        """Run one of `predict_*`; a server that went back to a repository of an older version is asked for less.

        It is not asked about several images, which it does not read together.
        """
        try:
            return self._triton.infer(name, inputs, outputs, deadline.left(), calls=calls)
        except InputError as error:
            fewer = [output for output in outputs if output not in ADDED_OUTPUTS]
            if count_images(inputs) > 1:
                self._require_views(inputs, deadline)
            refused = any(f"'{output}'" in str(error) for output in set(outputs) - set(fewer))
            if not refused or self._models.read_latest(deadline.left()).tells_view:
                raise
            return self._triton.infer(name, inputs, fewer, deadline.left(), calls=calls)

    def _require_views(self, inputs: Arrays, deadline: Deadline) -> ServedModel:
        """Return what is served now; ArtifactError where that reads fewer images together than a request holds."""
        served = self._models.read_latest(deadline.left())
        require_views(count_images(inputs), served, source=f"Triton at {self._triton.url}")
        return served
