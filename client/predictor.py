"""Run the served `predict_*` models, and read each answer with the labels of the version that made it.

All operations are written in steps (`client.steps`).
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from client.channel import Calls
from client.deadline import Deadline
from client.exchange import count_images, make_inputs, read_answer
from client.inputs import ReportSource, StudyImages
from client.lock import BlockingLock, Lock
from client.prediction import Kind, Prediction
from client.rotation import Rotation
from client.served import ServedModel, ServedModels, list_outputs, require_views
from client.shrink import shrink_inputs
from client.steps import Steps, ask, work
from client.transports import Triton
from client.triton_core import Answer, Arrays
from contract.errors import InputError, UnavailableError
from contract.tensors import ADDED_OUTPUTS

_ATTEMPTS: Final = 3  # if the server replaces the model before the client has read its labels


class ServedTriton:
    """One Triton, and what is known about its models. Several threads or tasks may use it at once."""

    def __init__(self, triton: Triton, *, shrink: bool, make_lock: Callable[[], Lock]) -> None:
        """Take the transport; see `Predictor`."""
        self.triton = triton
        self.models = ServedModels(triton.read_model, make_lock)
        self._shrink = shrink

    def predict(
        self, kind: Kind, inputs: Arrays, deadline: Deadline, calls: Calls | None
    ) -> Steps[Prediction]:
        """Predict one case of `client.exchange.make_inputs`."""
        name = f"predict_{kind}"
        expected = yield from self.models.require(deadline.left, calls)
        if count_images(inputs) > expected.most_views:
            expected = yield from self._require_views(inputs, deadline, calls)
        outputs = list_outputs(name, expected)
        shrunk = (yield from work(shrink_inputs, inputs, expected)) if self._shrink else None
        if shrunk is not None:
            answer, model = yield from self.run(name, shrunk.inputs, outputs, deadline, calls)
            if shrunk.fits(model):
                return shrunk.restore_notes(read_answer(kind, model, answer))
        answer, model = yield from self.run(name, inputs, outputs, deadline, calls)
        return read_answer(kind, model, answer)

    def run(
        self,
        name: str,
        inputs: Arrays,
        outputs: Sequence[str],
        deadline: Deadline,
        calls: Calls | None = None,
    ) -> Steps[tuple[Answer, ServedModel]]:
        """Run one of `predict_*`. Return its answer, and the facts about the version that made the answer.

        Raises:
            UnavailableError: The server replaced the model several times in a row.
            CxrError: As in `TritonTransport.infer` and `TritonTransport.read_model`.
        """
        yield from self.models.require(deadline.left, calls)
        for _ in range(_ATTEMPTS):
            sent_at = time.monotonic()
            answer = yield from self._infer(name, inputs, outputs, deadline, calls)
            model = yield from self.models.resolve(name, answer.model_version, sent_at, deadline.left, calls)
            if model is not None:
                return answer, model
        raise UnavailableError(
            f"Triton at {self.triton.url} switches from one model to another again and again: try again when its "
            "model repository no longer changes."
        )

    def _infer(
        self, name: str, inputs: Arrays, outputs: Sequence[str], deadline: Deadline, calls: Calls | None
    ) -> Steps[Answer]:
        """Run one of `predict_*`. If the server went back to an older repository, leave out the outputs that it lacks.

        An older repository reads one image of a study only. A request with several images is then refused.
        """
        try:
            return (yield from ask(self.triton.infer, name, inputs, outputs, deadline.left(), calls=calls))
        except InputError as error:
            if count_images(inputs) > 1:
                yield from self._require_views(inputs, deadline, calls)
            if not any(f"'{output}'" in str(error) for output in ADDED_OUTPUTS if output in outputs):
                raise
            known = list_outputs(name, (yield from self.models.read_latest(deadline.left(), calls)))
            older = [output for output in outputs if output in known]
            if older == list(outputs):
                raise
            return (yield from ask(self.triton.infer, name, inputs, older, deadline.left(), calls=calls))

    def _require_views(self, inputs: Arrays, deadline: Deadline, calls: Calls | None) -> Steps[ServedModel]:
        """Return the model that is served now. Raise ArtifactError if it cannot read all images of a request."""
        model = yield from self.models.read_latest(deadline.left(), calls)
        require_views(count_images(inputs), model, source=f"Triton at {self.triton.url}")
        return model


class Predictor(Rotation[ServedTriton]):
    """Predicts cases on one or several Tritons in turn. Several threads or tasks may use it at once."""

    def __init__(
        self,
        tritons: Sequence[Triton],
        *,
        shrink: bool,
        retries: int | None = None,
        make_lock: Callable[[], Lock] = BlockingLock,
    ) -> None:
        """Take the transports.

        Args:
            tritons: Send the requests, in turn.
            shrink: Whether to read large images here and to send their pixels (`client.shrink`).
            retries: As in `client.rotation.Rotation`.
            make_lock: As in `client.served.ServedModels`.

        Raises:
            ConfigError: As in `client.rotation.Rotation`.
        """
        servers = [ServedTriton(triton, shrink=shrink, make_lock=make_lock) for triton in tritons]
        super().__init__(servers, retries)

    def predict(
        self,
        image: StudyImages | None,
        report: ReportSource | None,
        deadline: Deadline,
        calls: Calls | None = None,
    ) -> Steps[Prediction]:
        """Predict one case. See `CxrClient.predict` for the arguments and the errors.

        Args:
            image: The images of the case.
            report: The report of the case.
            deadline: Deadline of everything that the prediction sends.
            calls: The group with which the request is cancelled.
        """
        kind, inputs = yield from work(make_inputs, image, report)

        def predict(server: ServedTriton) -> Steps[Prediction]:
            return server.predict(kind, inputs, deadline, calls)

        return (yield from self.run(predict, deadline, calls=calls))
