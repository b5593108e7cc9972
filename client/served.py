"""What served models say about themselves: read from Triton's configuration, kept for the version that answered.

A server may switch to a new model at any time. An answer names the version that made it; before the answer is read
with labels and thresholds, these are those of that version, or they are asked for again. What was read is also
believed for 2 s only: Triton cannot be stopped and started with other models under the same number in less.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from client.results import ServedModel
from contract.decisions import parse_decisions
from contract.errors import ArtifactError, BusyError, ServerError, UnavailableError
from contract.runtime.embedded import REQUIRED_BACKEND
from contract.shrink import IMAGE_READING_PARAMETER
from contract.tensors import ADDED_OUTPUTS, LATERAL, MODELS
from contract.training_data import parse_unmeasured, parse_ways, read_trained_on

_TRUST_S: Final = 2.0


@dataclass(frozen=True)
class _Known:
    """What one version said, and when (of `time.monotonic`)."""

    version: str
    model: ServedModel
    read_at: float


class ServedModels:
    """The served models by name, as of the version that answered last; may be used by several threads at once."""

    def __init__(self, read: Callable[..., ServedModel]) -> None:
        """Describe them; `read` is `TritonTransport.read_model`."""
        self._read = read
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._latest: ServedModel | None = None

    def read_latest(self, timeout_s: float) -> ServedModel:
        """Ask the server for what it serves now."""
        model = self._read(timeout_s)
        self._latest = model
        return model

    def require(self, timeout_s: Callable[[], float]) -> ServedModel:
        """Return the model that answered last; ask the server when there is none. Errors as of `read_model`."""
        with self._lock:  # threads that start together ask once
            if self._latest is None:
                self._latest = self._read(timeout_s())
            return self._latest

    def resolve(
        self, name: str, version: str, sent_at: float, timeout_s: Callable[[], float]
    ) -> ServedModel | None:
        """Return the model that made an answer, or None when the server has replaced it since.

        Args:
            name: The served model that answered, one of `predict_*`.
            version: Its version as the answer says; empty when it says none.
            sent_at: When the request was sent, of `time.monotonic`.
            timeout_s: Returns the seconds left.
        """
        if not version:
            return self._latest
        known = self._known.get(name)
        if known and known.version == version and known.read_at >= sent_at - _TRUST_S:
            return known.model
        read_at = time.monotonic()
        try:
            model = self._read(timeout_s(), name, version)
        except (ServerError, UnavailableError, BusyError):
            return None
        self._known[name] = _Known(version, model, read_at)
        self._latest = model
        return model


def parse_model(name: str, config: Mapping[str, Any], *, source: str) -> ServedModel:
    """Return what a `predict_*` model's configuration, as Triton's JSON, says in its parameters.

    Args:
        name: The served model.
        config: Its configuration.
        source: Who said it, for messages: "Triton at host:port".

    Raises:
        ArtifactError: The server runs something else than a repository published by `cxr export` of this version.
    """
    model = _parse_parameters(config, source)
    served = {entry["name"] for entry in config.get("output", [])}
    _check_outputs(name, served, source)
    sees = LATERAL in MODELS[name].outputs
    return replace(model, tells_view=LATERAL.name in served if sees else None)


def list_outputs(name: str, model: ServedModel) -> list[str]:
    """Return the outputs of one of `predict_*` that the served model has, as far as it is known."""
    lacking = ADDED_OUTPUTS if model.tells_view is False else ()
    return [tensor.name for tensor in MODELS[name].outputs if tensor.name not in lacking]


def require_views(count: int, model: ServedModel, *, source: str) -> None:
    """Refuse to ask a repository of an older version about several images of a study.

    Args:
        count: How many images there are.
        model: That is served.
        source: Who serves it: "Triton at host:port".

    Raises:
        ArtifactError: The model reads fewer images together.
    """
    if count > model.most_views:
        raise _refuse_old(source, f"a model that reads one image of a study, not {count}")


def _parse_parameters(config: Mapping[str, Any], source: str) -> ServedModel:
    try:
        values = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        if "labels" in values:
            raise _refuse_old(source, "one threshold per label for all ways to read a study")
        return ServedModel(
            fingerprint=values["fingerprint"],
            text_mode=values["text_mode"],
            max_length=int(values["max_length"]),
            image_size=int(values["image_size"]),
            embedding_size=int(values["embedding_size"]),
            grid=int(values["image_tokens_grid"]),
            decisions=parse_decisions(json.loads(values["decisions"]), source=source),
            temperature=float(values["temperature"]) if "temperature" in values else None,
            trained_on=read_trained_on(values.get("trained_on")),  # an older version does not say it
            trained_ways=parse_ways(values.get("trained_ways")),  # nor this
            unmeasured=parse_unmeasured(values.get("unmeasured")),  # nor this
            vocabulary_size=_read_optional(values, "vocabulary_size"),
            profile=values.get("profile", ""),
            required_backend=values.get(REQUIRED_BACKEND, ""),
            image_reading=_read_optional(values, IMAGE_READING_PARAMETER),
            most_views=_read_optional(values, "most_views") or 1,
            trained_views=_read_optional(values, "trained_views") or 1,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{source} serves models that `cxr export` did not publish: their parameters lack decisions or sizes."
        ) from error


def _read_optional(values: Mapping[str, str], name: str) -> int | None:
    return int(values[name]) if name in values else None


def _check_outputs(name: str, served: set[str], source: str) -> None:
    """Refuse a repository of an older version: without its notes an odd image would pass for a usual one."""
    expected = {tensor.name for tensor in MODELS[name].outputs} - set(ADDED_OUTPUTS)
    if missing := sorted(expected - served):
        raise _refuse_old(source, f"{name} without the outputs {', '.join(missing)}")


def _refuse_old(source: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"{source} serves {what}: an older version published it; publish the bundle again with `cxr export`."
    )
