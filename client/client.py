"""`CxrClient`: predictions, similar cases, indexing and explanations from the servers, for blocking callers."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from client.backup import Backup
from client.cases import CaseInput, IndexResult, ListedCase, SearchResult, SimilarCase
from client.channel import Calls, Carrier, ChannelSettings, Compression
from client.core import IN_FLIGHT, ClientCore
from client.deadline import check_timeout
from client.health import Health
from client.indexing import Embedded
from client.inputs import ImageSource, ReportSource, StudyImages
from client.lock import BlockingLock
from client.many import Outcome, predict_in_order
from client.prediction import BatchPrediction, Prediction
from client.prompt_scores import FindingScore
from client.retrieval import RetrievalTransport
from client.retrieval_core import NO_OPTIONS, IndexInfo, iterate_pages, make_list_request
from client.search_options import SearchOptions
from client.served import ServedModel
from client.steps import run
from client.triton import TritonTransport
from contract.bundle import Bundle, require_same_fingerprint
from contract.connection import TLS, resolve_addresses, resolve_connection

if TYPE_CHECKING:
    from client.explanation import Explanation

_BACKUP_S: Final = 3600.0


class CxrClient(ClientCore):
    """Client of Triton and the retrieval sidecar, one or several of each. Several threads may use it at once."""

    def __init__(
        self,
        triton_url: str | Sequence[str] | None = None,
        retrieval_url: str | Sequence[str] | None = None,
        timeout_s: float = 10.0,
        *,
        transport: Carrier = "auto",
        compression: Compression = "none",
        keepalive_s: float | None = None,
        shrink: bool = True,
        tls: TLS | Literal[False] | None = None,
        token: str | None = None,
        retries: int | None = None,
    ) -> None:
        """Set the addresses. The first call connects.

        Args:
            triton_url: host:port of Triton's gRPC service, or a gRPC address such as unix:/path. A list, or text with
                commas, for several servers, which take turns (`client.rotation`). None: as the environment says
                (`contract.connection`), else 127.0.0.1:8001.
            retrieval_url: The same of the retrieval sidecar; at last 127.0.0.1:8005. With several, cases can only be
                read: each sidecar has a store of its own.
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
            retries: How often a call is repeated if a server does not answer or its queue is full, within the deadline
                of the call. `delete` is never repeated. None: once for each further server of its kind.

        Raises:
            ConfigError: A setting does not exist, an address or a number is not valid, a file of TLS cannot be used, or
                the token would travel to another host as plain text.
        """
        connection = resolve_connection(tls, token)
        settings = ChannelSettings(transport, compression, keepalive_s, connection)
        self._tritons = [TritonTransport(url, settings) for url in resolve_addresses(triton_url, "triton")]
        self._sidecars = [
            RetrievalTransport(url, connection) for url in resolve_addresses(retrieval_url, "retrieval")
        ]
        super().__init__(
            self._tritons,
            self._sidecars,
            timeout_s,
            shrink=shrink,
            retries=retries,
            make_lock=BlockingLock,
        )

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
        return run(self._predict_in_steps(image, report, timeout_s))

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
        return run(self._predict_tensors_in_steps(pixels, input_ids, attention_mask, timeout_s))

    def predict_many(
        self,
        cases: Iterable[CaseInput],
        *,
        in_flight: int = IN_FLIGHT,
        timeout_s: float | None = None,
        keep_going: bool = False,
    ) -> Generator[tuple[CaseInput, Outcome], None, None]:
        """Predict many cases with several requests in flight. The results have the order of the cases.

        To stop early, close the iterator: that cancels the requests in flight, here and on the server.

        Args:
            cases: The cases. The client reads them one after another, and holds at most `2 * in_flight` in memory.
            in_flight: Number of requests at once, at least 1.
            timeout_s: Deadline of each request, in seconds. None: the deadline of the client.
            keep_going: Whether a failure of a server is the result of its case, and the run goes on. False: the run
                ends with the error.

        Yields:
            Each case with its prediction. A case that cannot be read, or that the model refused, with the InputError.
            With `keep_going`, a case on which Triton failed with the ServiceError.

        Raises:
            ConfigError: `in_flight` is below 1.
            ServiceError: Triton is down, busy, slow, or failed, without `keep_going`.
        """
        limit_s = self._limit(timeout_s)

        def predict(case: CaseInput, calls: Calls) -> Outcome:
            return run(self._predict_case(case, limit_s, calls, keep_going))

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
        return run(self._search_in_steps(image, report, k, exclude_studies, options, timeout_s))

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
        return run(
            self._search_embedding_in_steps(embedding, fingerprint, k, exclude_studies, options, timeout_s)
        )

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
        return run(self._score_findings_in_steps(findings, prediction, timeout_s))

    def index(
        self,
        cases: Iterable[CaseInput],
        *,
        progress: Callable[[int], None] | None = None,
        timeout_s: float | None = None,
        keep_going: bool = False,
    ) -> IndexResult:
        """Embed cases with the served model and store them for searches.

        If a case cannot be read, or the model or the sidecar refuses it, the result names it and the other cases are
        still indexed. A case replaces a stored case with the same id, so an interrupted run can be repeated.

        Args:
            cases: The cases. The client reads them one after another and holds only a few in memory.
            progress: Called with the number of finished cases.
            timeout_s: Deadline of each request, in seconds. None: the deadline of the client.
            keep_going: Whether a failure of a server is part of the result (`failed`). The other cases are still
                indexed.

        Raises:
            ConfigError: There are several sidecars.
            FingerprintError: The server switched to another model meanwhile, or the store already holds the cases of
                too many models.
            ServiceError: A server is down or failed at the start, or later without `keep_going`. The cases that were
                stored before remain stored.
        """
        limit_s = self._limit(timeout_s)

        def embed(case: CaseInput, calls: Calls) -> Embedded:
            return run(self._embed_case(case, limit_s, calls, keep_going))

        with closing(predict_in_order(embed, cases, IN_FLIGHT)) as outcomes:
            results = (embedded for _, embedded in outcomes)
            return run(self._index_in_steps(partial(next, results, None), progress, limit_s, keep_going))

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
        return run(self._info_in_steps(timeout_s))

    def index_info(self, *, timeout_s: float | None = None) -> IndexInfo:
        """Return what the index is: its model, its kind, its cases, its memory. ServiceError: as in `search`."""
        return run(self._index_info_in_steps(timeout_s))

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

        From a Milvus store they come in the order of their ids. It reads page after page. A case that is replaced
        meanwhile may come twice; one that stays as it is comes once.

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
        self._require_one_retrieval()
        request = make_list_request(fingerprint, exclude_studies, options, reports=reports)
        return iterate_pages(lambda: run(self._list_page_in_steps(request, limit_s)), request)

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
        return self._require_one_sidecar().back_up(Path(out), check_timeout(timeout_s))

    def delete(self, ids: Sequence[str], *, timeout_s: float | None = None) -> int:
        """Delete stored cases for good; return how many there were.

        Raises:
            InputError: `ids` is empty or not a list of strings.
            ServiceError: As in `search`.
        """
        return run(self._delete_in_steps(ids, timeout_s))

    def health(self, *, timeout_s: float | None = None) -> Health:
        """Check both servers, Triton with real cases. An error of a server is part of the result, not raised.

        A Triton with a full queue counts as ready.

        Args:
            timeout_s: Deadline of all questions to one server, in seconds. None: the deadline of the client.
        """
        return run(self._health_in_steps(timeout_s))

    def close(self) -> None:
        """Close all connections, which cancels the running requests. A later call is a CancelledError."""
        self._closed = True
        for triton in self._tritons:
            triton.close()
        for sidecar in self._sidecars:
            sidecar.close()

    def _require_one_sidecar(self) -> RetrievalTransport:
        self._require_one_retrieval()
        return self._sidecars[0]

    def __enter__(self) -> "CxrClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
