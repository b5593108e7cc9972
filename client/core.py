"""What `CxrClient` and `AsyncCxrClient` have in common: every operation, written once in steps (`client.steps`).

    images, report ──> Triton (predict_study, predict_image or predict_text) ──> Prediction
    embedding ───────> retrieval sidecar ──> similar cases

Every call has a deadline, which all requests of the call share. Errors are those of `contract.errors`.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.cases import CaseInput, IndexResult, ListedCase, SearchResult, SimilarCase
from client.channel import Calls
from client.deadline import Deadline, check_timeout
from client.exchange import check_tensors, read_batch
from client.health import Health, check_health
from client.indexing import Embedded, Take, decode_report, index_cases, keep_report
from client.inputs import ReportSource, StudyImages, read_report
from client.lock import Lock
from client.many import Outcome
from client.prediction import BatchPrediction, Prediction
from client.predictor import Predictor, ServedTriton
from client.prompt_scores import FindingScore, score_findings
from client.retrieval_core import Found, IndexInfo, Stored, StoredCase, check_search
from client.rotation import Rotation
from client.search_options import SearchOptions
from client.served import ServedModel, list_outputs, require_unchanged
from client.steps import Steps, ask, work
from client.transports import Retrieval, Triton
from client.triton_core import Arrays
from contract.errors import ConfigError, FingerprintError, InputError, ServiceError
from contract.proto import retrieval_pb2
from contract.report.text import MAX_REPORT_CHARS
from contract.report.tokens import TokenLimits

T = TypeVar("T")

IN_FLIGHT: Final = 8  # requests at once for many cases: enough to fill Triton's batches


class ClientCore:
    """The operations of a client, in steps."""

    def __init__(
        self,
        tritons: Sequence[Triton],
        retrievals: Sequence[Retrieval],
        timeout_s: float,
        *,
        shrink: bool,
        retries: int | None,
        make_lock: Callable[[], Lock],
    ) -> None:
        """Take the connections.

        Args:
            tritons: One or more.
            retrievals: One or more.
            timeout_s: Deadline of a call without its own deadline, in seconds.
            shrink: As in `client.client.CxrClient`.
            retries: As in `client.client.CxrClient`.
            make_lock: `BlockingLock` or `AsyncLock`.

        Raises:
            ConfigError: A number is out of its range.
        """
        self._timeout_s = check_timeout(timeout_s)
        self._closed = False
        self._retrievals = Rotation(retrievals, retries)
        self._predictor = Predictor(tritons, shrink=shrink, retries=retries, make_lock=make_lock)

    def __repr__(self) -> str:
        """Return the addresses."""
        tritons = [server.triton.url for server in self._predictor.servers]
        retrievals = [server.url for server in self._retrievals.servers]
        shown = (urls[0] if len(urls) == 1 else urls for urls in (tritons, retrievals))
        return f"{type(self).__name__}({', '.join(map(repr, shown))})"

    def _predict_in_steps(
        self, image: StudyImages | None, report: ReportSource | None, timeout_s: float | None
    ) -> Steps[Prediction]:
        return (yield from self._predictor.predict(image, report, self._start(timeout_s)))

    def _predict_case(
        self, case: CaseInput, limit_s: float, calls: Calls, keep_going: bool
    ) -> Steps[Outcome]:
        """Predict one of many cases. Return the error of a case that cannot be read or is refused.

        With `keep_going`, return an error of the server, too.
        """
        try:
            if case.image is None and case.report is None:
                raise InputError("The case has neither an image nor a report.")
            return (yield from self._predictor.predict(case.image, case.report, Deadline(limit_s), calls))
        except InputError as error:
            return error
        except ServiceError as error:
            if not keep_going or self._closed:
                raise
            return error

    def _embed_case(self, case: CaseInput, limit_s: float, calls: Calls, keep_going: bool) -> Steps[Embedded]:
        """Predict one of many cases for the index. Return the case with the content of its report, too."""
        kept = yield from work(keep_report, case)
        return kept, (yield from self._predict_case(kept, limit_s, calls, keep_going))

    def _predict_tensors_in_steps(
        self,
        pixels: NDArray[np.uint8] | None,
        input_ids: NDArray[np.int64] | None,
        attention_mask: NDArray[np.int64] | None,
        timeout_s: float | None,
    ) -> Steps[BatchPrediction]:
        deadline = self._start(timeout_s)

        def predict(server: ServedTriton) -> Steps[BatchPrediction]:
            served = yield from server.models.require(deadline.left)
            kind, inputs = check_tensors(
                pixels,
                input_ids,
                attention_mask,
                image_size=served.image_size,
                limits=TokenLimits(served.vocabulary_size, served.max_length),
            )
            name = f"predict_{kind}_tensors"
            answer, model = yield from server.run(name, inputs, list_outputs(name, served), deadline)
            return read_batch(kind, model, answer)

        return (yield from self._predictor.run(predict, deadline))

    def _search_in_steps(
        self,
        image: StudyImages | None,
        report: ReportSource | None,
        k: int,
        exclude_studies: Sequence[str],
        options: SearchOptions,
        timeout_s: float | None,
    ) -> Steps[SearchResult]:
        deadline = self._start(timeout_s)
        excluded = check_search(k, exclude_studies, options)  # before anything is sent
        if report is not None and not isinstance(report, str):
            report = yield from work(read_report, report)  # a pipe can be read only once
        query = yield from self._predictor.predict(image, report, deadline)
        text = decode_report(report)[:MAX_REPORT_CHARS].encode(errors="replace").decode()
        found = yield from self._find(
            query.fingerprint, query.embedding, k, excluded, options, text, deadline
        )
        return SearchResult(tuple(found.cases), query.warnings, query.trained_on, found.exact)

    def _search_embedding_in_steps(
        self,
        embedding: NDArray[np.float32],
        fingerprint: str,
        k: int,
        exclude_studies: Sequence[str],
        options: SearchOptions,
        timeout_s: float | None,
    ) -> Steps[list[SimilarCase]]:
        deadline = self._start(timeout_s)
        found = yield from self._find(fingerprint, embedding, k, exclude_studies, options, "", deadline)
        return found.cases

    def _find(
        self,
        fingerprint: str,
        embedding: NDArray[np.float32],
        k: int,
        exclude_studies: Sequence[str],
        options: SearchOptions,
        text: str,
        deadline: Deadline,
    ) -> Steps[Found]:
        """Search on the next sidecar. One that lacks an index of the model is passed over."""

        def search(retrieval: Retrieval) -> Steps[Found]:
            return ask(
                retrieval.search, fingerprint, embedding, k, exclude_studies, deadline.left(), options, text
            )

        return (yield from self._retrievals.run(search, deadline, elsewhere=(FingerprintError,)))

    def _score_findings_in_steps(
        self, findings: Sequence[str], prediction: Prediction, timeout_s: float | None
    ) -> Steps[tuple[FindingScore, ...]]:
        deadline = self._start(timeout_s)

        def score(server: ServedTriton) -> Steps[tuple[FindingScore, ...]]:
            model = yield from server.models.read_latest(deadline.left())

            def infer(name: str, inputs: Arrays, outputs: Sequence[str]) -> Steps[Arrays]:
                if not name.startswith("predict_"):
                    return (yield from ask(server.triton.infer, name, inputs, outputs, deadline.left()))
                answer, answering = yield from server.run(name, inputs, outputs, deadline)
                require_unchanged(prediction.fingerprint, answering.fingerprint)
                return answer

            return (yield from score_findings(findings, prediction, model, infer))

        return (yield from self._predictor.run(score, deadline, elsewhere=(FingerprintError,)))

    def _index_in_steps(
        self, take: Take, progress: Callable[[int], None] | None, limit_s: float, keep_going: bool
    ) -> Steps[IndexResult]:
        """Store cases. `take` is as in `client.indexing.index_cases`."""
        retrieval = self._require_one_retrieval()
        model = yield from self._info_in_steps(limit_s)

        def add(cases: Sequence[StoredCase]) -> Steps[Stored]:
            deadline = Deadline(limit_s)  # a repetition stores the same cases under the same ids
            return self._retrievals.run(
                lambda _: ask(retrieval.add, model.fingerprint, cases, deadline.left()), deadline
            )

        return (yield from index_cases(take, model, add=add, progress=progress, keep_going=keep_going))

    def _info_in_steps(self, timeout_s: float | None) -> Steps[ServedModel]:
        deadline = self._start(timeout_s)
        return (
            yield from self._predictor.run(
                lambda server: server.models.read_latest(deadline.left()), deadline
            )
        )

    def _index_info_in_steps(self, timeout_s: float | None) -> Steps[IndexInfo]:
        deadline = self._start(timeout_s)
        return (
            yield from self._retrievals.run(
                lambda retrieval: ask(retrieval.read_info, deadline.left()), deadline
            )
        )

    def _delete_in_steps(self, ids: Sequence[str], timeout_s: float | None) -> Steps[int]:
        # Never repeated: the second answer would not count the cases that the first request deleted.
        return (yield from ask(self._require_one_retrieval().delete, ids, self._limit(timeout_s)))

    def _list_page_in_steps(
        self, request: retrieval_pb2.ListCasesRequest, limit_s: float
    ) -> Steps[list[ListedCase]]:
        """Return the next page. A repetition asks for the same page: only an answer changes the request."""
        self._require_one_retrieval()
        deadline = Deadline(limit_s)
        return (
            yield from self._retrievals.run(
                lambda retrieval: ask(retrieval.list_page, request, deadline.left()), deadline
            )
        )

    def _health_in_steps(self, timeout_s: float | None) -> Steps[Health]:
        return (yield from check_health(self._retrievals.servers, self._predictor, self._limit(timeout_s)))

    def _require_one_retrieval(self) -> Retrieval:
        """Return the sidecar. Raise ConfigError if there are several, because each has a store of its own."""
        if len(self._retrievals.servers) > 1:
            raise ConfigError(
                "Each sidecar has a store of its own, so cases are stored and deleted at one of them: give one address "
                "as retrieval_url (--retrieval)."
            )
        return self._retrievals.servers[0]

    def _limit(self, timeout_s: float | None) -> float:
        """Return the deadline of a call, in seconds."""
        return self._timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _start(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._limit(timeout_s))
