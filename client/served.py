"""Facts about the served model: fingerprint, sizes, labels and thresholds, from Triton's model configuration.

A server may switch to another model at any time. An answer states the version of the model that made it. The client
reads an answer with the labels and thresholds of exactly that version, and reads them from the server if it does not
know them. It trusts what it has read for 2 s only: stopping Triton and starting it with another model under the same
version number takes longer.
"""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from client.channel import Calls
from client.lock import BlockingLock, Lock
from client.steps import Steps, ask
from contract.bundle import require_same_fingerprint
from contract.decisions import Decisions, parse_decisions
from contract.embedding import LABELS_PARAMETER
from contract.errors import ArtifactError, BusyError, ServerError, UnavailableError
from contract.runtime.embedded import REQUIRED_BACKEND
from contract.shrink import IMAGE_READING_PARAMETER
from contract.tensors import ADDED_OUTPUTS, IMAGE_SHARE, LATERAL, MODELS
from contract.training_data import (
    UNKNOWN,
    WAYS,
    parse_keys,
    parse_ways,
    read_trained_on,
    warn_of_training,
)

_TRUST_S: Final = 2.0
_LOOK_S: Final = 0.2  # a group of calls that waits for the lock looks so often whether it was cancelled


@dataclass(frozen=True)
class ServedModel:
    """Facts about the served model. A repository that an older version published lacks the optional ones.

    Attributes:
        fingerprint: Fingerprint of the model.
        text_mode: The part of a report that the model reads (`contract.report.text.TextMode`).
        max_length: Largest number of tokens that the model reads.
        image_size: Side of the model's pixels, S.
        embedding_size: D.
        grid: Side of the square that the N image tokens form.
        decisions: Labels and thresholds, without their calibration.
        temperature: Divisor of the similarities in the contrastive loss; None if not stated.
        trained_on: The collection that the model was trained on: "phantom", "openi", another name, or "unknown".
        trained_ways: The kinds of input that the model was trained on: some of "study", "image" and "text".
        vocabulary_size: Token ids are smaller than this; None if not stated.
        profile: Precision profile of the graphs; "" if not stated.
        required_backend: The only Triton backend that runs the graphs as they were tested; "" for any backend.
        image_reading: Number of the code that reads images on the server (`contract.shrink`); None if not stated.
        unmeasured: Keys of the labels with too few cases in the test split.
        held_out: Keys of the labels that were held out of training.
        tells_view: Whether answers contain `lateral`; None from a model that reads no image.
        tells_share: Whether answers contain `image_share`; None from a model that reads no image, or no report.
        most_views: Largest number of images of one study that the model reads together.
        trained_views: Largest number of images of one study that the model was trained on.
        label_part: Length of the label part of an embedding (`contract.embedding`).
    """

    fingerprint: str
    text_mode: str
    max_length: int
    image_size: int
    embedding_size: int
    grid: int
    decisions: Decisions
    temperature: float | None = None
    trained_on: str = UNKNOWN
    trained_ways: tuple[str, ...] = WAYS
    vocabulary_size: int | None = None
    profile: str = ""
    required_backend: str = ""
    image_reading: int | None = None
    unmeasured: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    tells_view: bool | None = None
    tells_share: bool | None = None
    most_views: int = 1
    trained_views: int = 1
    label_part: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt every answer of this model."""
        return warn_of_training(self.trained_on)

    def __repr__(self) -> str:
        return (
            f"ServedModel({self.fingerprint[:12]!r}, reads {self.text_mode!r} and {self.image_size} pixels, "
            f"decides from {', '.join(self.decisions.ways) or 'nothing'})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `warnings`."""
        return {**asdict(self), "decisions": self.decisions.describe(), "warnings": list(self.warnings)}


@dataclass(frozen=True)
class _Reading:
    """Facts about one version of a model, and the time at which they were read (`time.monotonic`)."""

    version: str
    model: ServedModel
    read_at: float


class ServedModels:
    """A cache of the facts about each model of one server. Several threads or tasks may use it at once."""

    def __init__(
        self,
        read: Callable[..., ServedModel | Awaitable[ServedModel]],
        make_lock: Callable[[], Lock] = BlockingLock,
    ) -> None:
        """Start with an empty cache.

        Args:
            read: `read_model` of a transport to Triton.
            make_lock: `BlockingLock` or `AsyncLock`, as `read` blocks or not.
        """
        self._read = read
        self._lock = make_lock()
        self._readings: dict[str, _Reading] = {}
        self._latest: ServedModel | None = None

    def read_latest(self, timeout_s: float, calls: Calls | None = None) -> Steps[ServedModel]:
        """Read from the server which model it serves now. May raise the errors of `TritonTransport.read_model`."""
        model = yield from ask(self._read, timeout_s, calls=calls)
        self._latest = model
        return model

    def require(self, timeout_s: Callable[[], float], calls: Calls | None = None) -> Steps[ServedModel]:
        """Return the model that answered last. Before the first answer, read it from the server.

        Args:
            timeout_s: Returns the seconds left, and raises DeadlineError if there are none.
            calls: The group with which the request is cancelled.

        Raises:
            CxrError: As in `TritonTransport.read_model`.
        """
        if self._latest is not None:
            return self._latest
        yield from self._acquire(timeout_s, calls)  # callers that start together send one request
        try:
            if self._latest is None:
                self._latest = yield from ask(self._read, timeout_s(), calls=calls)
            return self._latest
        finally:
            self._lock.release()

    def _acquire(self, timeout_s: Callable[[], float], calls: Calls | None) -> Steps[None]:
        """Wait for the lock, which another caller may hold for longer than this one has time."""
        acquired = False
        while not acquired:
            wait_s = timeout_s()
            if calls is not None:
                calls.require_running()
                wait_s = min(wait_s, _LOOK_S)
            acquired = yield from ask(self._lock.acquire, wait_s)

    def resolve(
        self,
        name: str,
        version: str,
        sent_at: float,
        timeout_s: Callable[[], float],
        calls: Calls | None = None,
    ) -> Steps[ServedModel | None]:
        """Return the model that made an answer; None if the server has replaced it meanwhile.

        Args:
            name: The served model that answered, one of `predict_*`.
            version: Its version in the answer; "" if the answer states none.
            sent_at: The time at which the request was sent (`time.monotonic`).
            timeout_s: Returns the seconds left.
            calls: As in `require`.
        """
        if not version:
            return self._latest
        reading = self._readings.get(name)
        if reading and reading.version == version and reading.read_at >= sent_at - _TRUST_S:
            return reading.model
        read_at = time.monotonic()
        try:
            model = yield from ask(self._read, timeout_s(), name, version, calls=calls)
        except (ServerError, UnavailableError, BusyError):
            return None
        self._readings[name] = _Reading(version, model, read_at)
        self._latest = model
        return model


def parse_model(name: str, config: Mapping[str, Any], *, source: str) -> ServedModel:
    """Return the facts that the configuration of a served model states in its parameters.

    Args:
        name: The served model, one of `predict_*`.
        config: Its configuration as Triton's JSON.
        source: The server, for messages: "Triton at host:port".

    Raises:
        ArtifactError: `cxr export` of this version did not publish the model.
    """
    model = _parse_parameters(config, source)
    outputs = {entry["name"] for entry in config.get("output", [])}
    # Without the notes, a warning about an unusual image would be lost: such a repository is refused.
    expected = {tensor.name for tensor in MODELS[name].outputs} - set(ADDED_OUTPUTS)
    if missing := sorted(expected - outputs):
        raise _make_old_error(source, f"{name} without the outputs {', '.join(missing)}")
    stated = [tensor.name for tensor in MODELS[name].outputs]
    tells_view, tells_share = (
        tensor.name in outputs if tensor.name in stated else None for tensor in (LATERAL, IMAGE_SHARE)
    )
    return replace(model, tells_view=tells_view, tells_share=tells_share)


def list_outputs(name: str, model: ServedModel) -> list[str]:
    """Return the names of the outputs of one of `predict_*`, without those that the served model lacks."""
    told = {LATERAL.name: model.tells_view, IMAGE_SHARE.name: model.tells_share}
    return [tensor.name for tensor in MODELS[name].outputs if told.get(tensor.name) is not False]


def require_views(count: int, model: ServedModel, *, source: str) -> None:
    """Raise ArtifactError if the served model cannot read so many images of a study together.

    Args:
        count: Number of images.
        model: The served model.
        source: The server, for the message: "Triton at host:port".
    """
    if count > model.most_views:
        raise _make_old_error(source, f"a model that reads one image of a study, not {count}")


def require_unchanged(expected: str, answering: str) -> None:
    """Raise FingerprintError if the server switched to another model.

    Args:
        expected: Fingerprint of the model at the start.
        answering: Fingerprint of the model that answered.
    """
    require_same_fingerprint(
        expected, answering, expected_from="the model at the start", found_from="The answer"
    )


def _parse_parameters(config: Mapping[str, Any], source: str) -> ServedModel:
    try:
        values = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        if "labels" in values:
            raise _make_old_error(source, "one threshold per label for all ways to read a study")
        return ServedModel(
            fingerprint=values["fingerprint"],
            text_mode=values["text_mode"],
            max_length=int(values["max_length"]),
            image_size=int(values["image_size"]),
            embedding_size=int(values["embedding_size"]),
            grid=int(values["image_tokens_grid"]),
            decisions=parse_decisions(json.loads(values["decisions"]), source=source),
            # An older version does not state the parameters from here on.
            temperature=float(values["temperature"]) if "temperature" in values else None,
            trained_on=read_trained_on(values.get("trained_on")),
            trained_ways=parse_ways(values.get("trained_ways")),
            unmeasured=parse_keys(values.get("unmeasured")),
            held_out=parse_keys(values.get("held_out")),
            vocabulary_size=_parse_optional(values, "vocabulary_size"),
            profile=values.get("profile", ""),
            required_backend=values.get(REQUIRED_BACKEND, ""),
            image_reading=_parse_optional(values, IMAGE_READING_PARAMETER),
            most_views=_parse_optional(values, "most_views") or 1,
            trained_views=_parse_optional(values, "trained_views") or 1,
            label_part=_parse_optional(values, LABELS_PARAMETER) or 0,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{source} serves models that `cxr export` did not publish: their parameters lack decisions or sizes."
        ) from error


def _parse_optional(values: Mapping[str, str], name: str) -> int | None:
    return int(values[name]) if name in values else None


def _make_old_error(source: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"{source} serves {what}: an older version published it. Publish the bundle again with `cxr export`."
    )
