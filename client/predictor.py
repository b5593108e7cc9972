"""Run the served `predict_*` models, and read each answer with the labels of the version that made it."""

import time
from collections.abc import Sequence
from typing import Final

from client.channel import Calls
from client.deadline import Deadline
from client.exchange import count_images, make_inputs, read_answer
from client.inputs import ReportSource, StudyImages
from client.prediction import Prediction
from client.served import ServedModel, ServedModels, list_outputs, require_views
from client.shrink import shrink_inputs
from client.triton import Answer, Arrays, TritonTransport
from contract.errors import InputError, UnavailableError
from contract.tensors import ADDED_OUTPUTS

_ATTEMPTS: Final = 3  # if the server replaces the model before the client has read its labels


class Predictor:
    """Predicts cases on one Triton. Several threads may use it at once."""

    def __init__(self, triton: TritonTransport, *, shrink: bool) -> None:
        """Take the transport.

        Args:
            triton: Sends the requests.
            shrink: Whether to read large images here and to send their pixels (`client.shrink`).
        """
        self.models = ServedModels(triton.read_model)
        self._triton = triton
        self._shrink = shrink

    def predict(
        self,
        image: StudyImages | None,
        report: ReportSource | None,
        deadline: Deadline,
        calls: Calls | None = None,
    ) -> Prediction:
        """Predict one case. See `CxrClient.predict` for the arguments and the errors.

        Args:
            image: The images of the case.
            report: The report of the case.
            deadline: Deadline of everything that the prediction sends.
            calls: The group with which the request is cancelled.
        """
        kind, inputs = make_inputs(image, report)
        name = f"predict_{kind}"
        expected = self.models.require(deadline.left)
        if count_images(inputs) > expected.most_views:
            expected = self._require_views(inputs, deadline)
        outputs = list_outputs(name, expected)
        shrunk = shrink_inputs(inputs, expected) if self._shrink else None
        if shrunk is not None:
            answer, model = self.run(name, shrunk.inputs, outputs, deadline, calls)
            if shrunk.fits(model):
                return shrunk.restore_notes(read_answer(kind, model, answer))
        answer, model = self.run(name, inputs, outputs, deadline, calls)
        return read_answer(kind, model, answer)

    def run(
        self,
        name: str,
        inputs: Arrays,
        outputs: Sequence[str],
        deadline: Deadline,
        calls: Calls | None = None,
    ) -> tuple[Answer, ServedModel]:
        """Run one of `predict_*`. Return its answer, and the facts about the version that made the answer.

        Raises:
            UnavailableError: The server replaced the model several times in a row.
            CxrError: As in `TritonTransport.infer` and `TritonTransport.read_model`.
        """
        self.models.require(deadline.left)
        for _ in range(_ATTEMPTS):
            sent_at = time.monotonic()
            answer = self._infer(name, inputs, outputs, deadline, calls)
            model = self.models.resolve(name, answer.model_version, sent_at, deadline.left)
            if model is not None:
                return answer, model
        raise UnavailableError(
            f"Triton at {self._triton.url} switches from one model to another again and again: try again when its "
            "model repository no longer changes."
        )

    def _infer(
        self, name: str, inputs: Arrays, outputs: Sequence[str], deadline: Deadline, calls: Calls | None
    ) -> Answer:
        """Run one of `predict_*`. If the server went back to an older repository, leave out the outputs that it lacks.

        An older repository reads one image of a study only. A request with several images is then refused.
        """
        try:
            return self._triton.infer(name, inputs, outputs, deadline.left(), calls=calls)
        except InputError as error:
            if count_images(inputs) > 1:
                self._require_views(inputs, deadline)
            if not any(f"'{output}'" in str(error) for output in ADDED_OUTPUTS if output in outputs):
                raise
            known = list_outputs(name, self.models.read_latest(deadline.left()))
            older = [output for output in outputs if output in known]
            if older == list(outputs):
                raise
            return self._triton.infer(name, inputs, older, deadline.left(), calls=calls)

    def _require_views(self, inputs: Arrays, deadline: Deadline) -> ServedModel:
        """Return the model that is served now. Raise ArtifactError if it cannot read all images of a request."""
        model = self.models.read_latest(deadline.left())
        require_views(count_images(inputs), model, source=f"Triton at {self._triton.url}")
        return model
