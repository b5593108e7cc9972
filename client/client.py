"""`CxrClient`: predictions, similar cases, indexing and explanations from the servers.

    images, report ──> Triton (predict_study, predict_image or predict_text) ──> Prediction
    embedding ───────> retrieval sidecar ──> similar cases

Every call has a deadline, which all requests of the call share. Errors are those of `contract.errors`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from client.backup import Backup
from client.cases import CaseInput, IndexResult, ListedCase, SearchResult, SimilarCase
from client.channel import Calls, Carrier, ChannelSettings, Compression
from client.deadline import Deadline, check_timeout
from client.exchange import check_tensors, read_batch
from client.health import Health, check_health
from client.indexing import decode_report, index_cases
from client.inputs import ImageSource, ReportSource, StudyImages, read_report
from client.many import predict_in_order
from client.prediction import BatchPrediction, Prediction
from client.predictor import Predictor
from client.prompt_scores import FindingScore, score_findings
from client.retrieval import NO_OPTIONS, IndexInfo, RetrievalTransport, check_search
from client.search_options import SearchOptions
from client.served import ServedModel, list_outputs, require_unchanged
from client.triton import Arrays, TritonTransport
from contract.bundle import Bundle, require_same_fingerprint
from contract.connection import TLS, resolve_connection
from contract.errors import InputError
from contract.report.text import MAX_REPORT_CHARS
from contract.report.tokens import TokenLimits

if TYPE_CHECKING:
    from client.explanation import Explanation

_BACKUP_S: Final = 3600.0
_IN_FLIGHT: Final = 8  # requests at once for many cases: enough to fill Triton's batches


class CxrClient:
    """Client of one Triton and one retrieval sidecar. Several threads may use it at once."""

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
        tls: TLS | Literal[False] | None = None,
        token: str | None = None,
    ) -> None:
        """Set the addresses. The first call connects.

        Args:
            triton_url: host:port of Triton's gRPC service, or a gRPC address such as unix:/path.
            retrieval_url: host:port of the retrieval sidecar.
            timeout_s: Deadline of a call without its own deadline, in seconds.
            transport: How tensors reach Triton. "grpc"; "shared_memory" for a Triton on the same host;
                "cuda_shared_memory" for preprocessed inputs and a Triton on the same GPU; "auto" uses shared memory
                for large requests to a loopback address. If Triton does not accept shared memory, the client uses gRPC.
            compression: Compression of gRPC messages: "none", "gzip" or "deflate". It saves time on networks below
                about 12 MB/s if the images are not compressed already. On one host it always costs time.
            keepalive_s: Seconds between pings of idle connections, at least 10; see `client.channel`. None: no pings.
            shrink: Whether to read large images here and to send only the pixels that the model reads
                (`client.shrink`). The answer is the same. This needs the `image` extra; without it, or with False,
                the client sends whole files.
            tls: How to check the servers, and this client's certificate. None: as the environment says
                (`contract.connection`), else plain text. False: plain text in any case.
            token: Token for both servers. None: as the environment says, else none. "": none in any case. It is sent
                only over TLS or to this host.

        Raises:
            ConfigError: A setting does not exist, an address is not valid, the time-out is not a number above 0, a file
                of TLS cannot be used, or the token would travel to another host as plain text.
        """
        self._timeout_s = check_timeout(timeout_s)
        connection = resolve_connection(tls, token)
        settings = ChannelSettings(transport, compression, keepalive_s, connection)
        self._triton = TritonTransport(triton_url, settings)
        self._retrieval = RetrievalTransport(retrieval_url, connection)
        self._predictor = Predictor(self._triton, shrink=shrink)

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
        """Predict the 22 finding categories of radiographs, a report, or both.

        An unusual but readable input gets an answer: a lateral view, another part of the body, several frames, an
        image without contrast, a report that is too long. `Prediction.warnings` then names it. A model that was
        trained on phantoms has a warning too.

        Args:
            image: One image, or a list or tuple of the 1 to 4 images of one study, the frontal one first. The model
                reads them together. An image is a DICOM, PNG or JPEG file as a path (text or `Path`) or as bytes; an
                array, (H, W) uint8 or uint16 with 0 for black, or (H, W, 3) uint8; a pydicom data set; or a Pillow
                image.
            report: Text with or without section headings; or a file (text or Open-i XML) as `Path` or bytes.
            timeout_s: Deadline in seconds. None: the deadline of the client.

        Raises:
            InputError: An image or the report cannot be read. The message names the step and the cause.
            ArtifactError: An older version published the served models, and they cannot read several images.
            UnavailableError, DeadlineError, ServerError: Triton is down, slow, or failed.
        """
        return self._predictor.predict(image, report, self._start(timeout_s))

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
            attention_mask: (B, L) int64, 1 on tokens and 0 on the padding after them.
            timeout_s: Deadline in seconds. None: the deadline of the client.

        Raises:
            TensorError: A tensor has the wrong type or shape, or the model cannot read the ids or the mask.
            ConfigError: There is no tensor, or token ids without their mask.
            ServiceError: As in `predict`.
        """
        deadline = self._start(timeout_s)
        served = self._predictor.models.require(deadline.left)
        kind, inputs = check_tensors(
            pixels,
            input_ids,
            attention_mask,
            image_size=served.image_size,
            limits=TokenLimits(served.vocabulary_size, served.max_length),
        )
        name = f"predict_{kind}_tensors"
        answer, model = self._predictor.run(name, inputs, list_outputs(name, served), deadline)
        return read_batch(kind, model, answer)

    def predict_many(
        self, cases: Iterable[CaseInput], *, in_flight: int = _IN_FLIGHT, timeout_s: float | None = None
    ) -> Iterator[tuple[CaseInput, Prediction | InputError]]:
        """Predict many cases with several requests in flight. The results have the order of the cases.

        To stop early, close the iterator: that cancels the requests in flight, here and on the server.

        Args:
            cases: The cases. The client reads them one after another, and holds at most `2 * in_flight` in memory.
            in_flight: Number of requests at once, at least 1.
            timeout_s: Deadline of each request, in seconds. None: the deadline of the client.

        Yields:
            Each case with its prediction. A case that cannot be read, or that the model refused, with the error.

        Raises:
            ConfigError: `in_flight` is below 1.
            ServiceError: Triton is down, busy, slow, or failed.
        """
        limit_s = self._limit(timeout_s)

        def predict(case: CaseInput, calls: Calls) -> Prediction:
            if case.image is None and case.report is None:
                raise InputError("The case has neither an image nor a report.")
            return self._predictor.predict(case.image, case.report, Deadline(limit_s), calls)

        return predict_in_order(predict, cases, in_flight)

    def search(
        self,
        image: StudyImages | None = None,
        report: ReportSource | None = None,
        *,
        k: int = 5,
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        timeout_s: float | None = None,
    ) -> SearchResult:
        """Find the stored cases that are most similar to radiographs, a report, a sentence, or a whole study.

        Args:
            image: As in `predict`.
            report: As in `predict`; may be a single sentence.
            k: Largest number of cases, 1 to 1000.
            exclude_studies: Ids of studies that the search leaves out, such as the study of the query.
            options: Which of the other cases count: labels, views, smallest similarity, diversity.
            timeout_s: Deadline of the prediction and the search together, in seconds. None: the deadline of the client.

        Returns:
            At most k cases, best first, with the warnings of the query's prediction.

        Raises:
            FingerprintError: The index holds only cases of another model.
            InputError: As in `predict` and `search_embedding`.
            ServiceError: As in `predict`; also of the sidecar.
        """
        deadline = self._start(timeout_s)
        excluded = check_search(k, exclude_studies, options)  # before anything is sent
        if report is not None and not isinstance(report, str):
            report = read_report(report)  # a pipe can be read only once
        query = self._predictor.predict(image, report, deadline)
        text = decode_report(report)[:MAX_REPORT_CHARS].encode(errors="replace").decode()
        found = self._retrieval.search(
            query.fingerprint, query.embedding, k, excluded, deadline.left(), options, text
        )
        return SearchResult(tuple(found.cases), query.warnings, query.trained_on, found.exact)

    def search_embedding(
        self,
        embedding: NDArray[np.float32],
        *,
        fingerprint: str,
        k: int = 5,
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        timeout_s: float | None = None,
    ) -> list[SimilarCase]:
        """Find the stored cases that are most similar to an embedding.

        Args:
            embedding: (D,) float32 of unit length.
            fingerprint: Fingerprint of the model that made the embedding.
            k: As in `search`.
            exclude_studies: As in `search`.
            options: As in `search`. There is no text of the query, so the results have no excerpt.
            timeout_s: Deadline in seconds. None: the deadline of the client.

        Raises:
            InputError: `k` is not from 1 to 1000, or `exclude_studies` is not a list of strings.
            FingerprintError, ServiceError: As in `search`.
        """
        limit_s = self._limit(timeout_s)
        return self._retrieval.search(fingerprint, embedding, k, exclude_studies, limit_s, options).cases

    def score_findings(
        self, findings: Sequence[str], prediction: Prediction, *, timeout_s: float | None = None
    ) -> tuple[FindingScore, ...]:
        """Score findings in free words, such as "rib fracture", for a prediction; see `client.prompt_scores`.

        Raises:
            FingerprintError: Another model than the served one made the prediction.
            InputError: A finding is empty, too long, a whole sentence, or has no word that the model knows.
            ConfigError: There is no finding.
            ServiceError: As in `predict`.
        """
        deadline = self._start(timeout_s)
        model = self.info(timeout_s=deadline.left())

        def infer(name: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
            if not name.startswith("predict_"):
                return self._triton.infer(name, inputs, outputs, deadline.left())
            answer, answering = self._predictor.run(name, inputs, outputs, deadline)
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
        """Embed cases with the served model and store them for searches.

        If a case cannot be read, or the model or the sidecar refuses it, the result names it and the other cases are
        still indexed. A case replaces a stored case with the same id, so an interrupted run can be repeated.

        Args:
            cases: The cases. The client reads them one after another and holds only a few in memory.
            progress: Called with the number of finished cases.
            timeout_s: Deadline of each request, in seconds. None: the deadline of the client.

        Raises:
            FingerprintError: The server switched to another model meanwhile, or the store already holds the cases of
                too many models.
            ServiceError: A server is down or failed. The cases that were stored before remain stored.
        """
        limit_s = self._limit(timeout_s)
        model = self.info(timeout_s=limit_s)
        return index_cases(
            cases,
            model,
            predict=partial(self.predict_many, timeout_s=limit_s),
            add=lambda part: self._retrieval.add(model.fingerprint, part, limit_s),
            progress=progress,
        )

    def explain(
        self,
        bundle: Bundle,
        image: ImageSource | None = None,
        report: ReportSource | None = None,
        *,
        label: str | None = None,
        steps: int | None = None,
        methods: Sequence[str] | None = None,
    ) -> "Explanation":
        """Explain one finding with the bundle of the served model; see `client.explain.explain`.

        Raises:
            FingerprintError: The bundle belongs to another model than the served one.
            ConfigError: The `explain` extra is not installed.
        """
        from client.explain import explain

        served = self.info().fingerprint
        require_same_fingerprint(
            served, bundle.fingerprint, expected_from="the served model", found_from=str(bundle.path)
        )
        return explain(bundle, image=image, report=report, label=label, steps=steps, methods=methods)

    def info(self, *, timeout_s: float | None = None) -> ServedModel:
        """Return the facts about the model that is served now. Errors as in `predict`."""
        return self._predictor.models.read_latest(self._limit(timeout_s))

    def index_info(self, *, timeout_s: float | None = None) -> IndexInfo:
        """Return what the index is: its model, its kind, its cases, its memory. ServiceError: as in `search`."""
        return self._retrieval.read_info(self._limit(timeout_s))

    def list_cases(
        self,
        *,
        fingerprint: str = "",
        exclude_studies: Sequence[str] = (),
        options: SearchOptions = NO_OPTIONS,
        reports: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[ListedCase]:
        """Return an iterator over the stored cases of one model, in the order in which they were stored.

        It reads page after page. A case that is replaced meanwhile may come twice; one that stays as it is comes once.

        Args:
            fingerprint: Fingerprint of the model. "": the served model, or else one that has cases.
            exclude_studies: Ids of studies that are left out.
            options: Which of the other cases count: labels, views, kinds, ids.
            reports: Whether to return the reports, too.
            timeout_s: Deadline of each page, in seconds. None: the deadline of the client.

        Raises:
            FingerprintError: The index holds only cases of other models.
            InputError: An option needs a query (`min_score`, `diversity`, `query_labels`), or a study id is not text.
            ServiceError: As in `search`.
        """
        limit_s = self._limit(timeout_s)
        return self._retrieval.list_cases(limit_s, fingerprint, exclude_studies, options, reports=reports)

    def back_up(self, out: Path | str, *, timeout_s: float = _BACKUP_S) -> Backup:
        """Write a copy of all stored cases into a new folder, while the sidecar serves.

        The copy of each model is as it was at one moment after the call began. So it holds all that was acknowledged
        before. `retrieval.restoring.restore` makes a store of it.

        Args:
            out: The folder. It must not exist. It appears when the backup is complete, checked and on the disk.
            timeout_s: Deadline in seconds.

        Raises:
            ConfigError: The folder exists.
            ArtifactError: The folder cannot be written.
            ServiceError: As in `search`. BusyError: another backup is running.
        """
        return self._retrieval.back_up(Path(out), check_timeout(timeout_s))

    def delete(self, ids: Sequence[str], *, timeout_s: float | None = None) -> int:
        """Delete stored cases for good; return how many there were.

        Raises:
            InputError: `ids` is empty or not a list of strings.
            ServiceError: As in `search`.
        """
        return self._retrieval.delete(ids, self._limit(timeout_s))

    def health(self, *, timeout_s: float | None = None) -> Health:
        """Check both servers, Triton with real cases. An error of a server is part of the result, not raised.

        A Triton with a full queue counts as ready.
        """
        return check_health(self._triton, self._retrieval, self._predictor, self._limit(timeout_s))

    def close(self) -> None:
        """Close all connections."""
        self._triton.close()
        self._retrieval.close()

    def __enter__(self) -> "CxrClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limit(self, timeout_s: float | None) -> float:
        """Return the deadline of a call, in seconds."""
        return self._timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _start(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._limit(timeout_s))
