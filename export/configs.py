"""Make the config.pbtxt of a served model from its template, a bundle's sizes and a target's settings."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import model_repository
from contract.bundle import Bundle
from contract.embedding import LABELS_PARAMETER
from contract.errors import ArtifactError, ConfigError
from contract.report.tokens import TokenLimits
from contract.repository import CONFIG_NAME
from contract.runtime.embedded import EMBEDDED, REQUIRED_BACKEND, needs_embedded
from contract.shrink import IMAGE_READING, IMAGE_READING_PARAMETER
from contract.tensors import IMAGE_BYTES, LAYOUTS, MAX_VIEWS, REPORT, ModelSpec, drop_checks
from export.graphs.checks import read_sizes
from export.graphs.fuse import drop_check, fuse_ensemble
from export.targets import apply_settings, check_target, count_cores
from export.versions import pin

TEMPLATES: Final = Path(model_repository.__file__).parent
# Fields in which the configs of two versions may differ. Triton uses the other fields for all versions of a model.
_FREE_FIELDS: Final = ("version_policy", "instance_group", "dynamic_batching", "model_warmup")


@dataclass(frozen=True)
class Deployment:
    """The settings of the published models of one bundle.

    Attributes:
        target: A name of `export.targets.TARGETS`.
        variant: A name of `export.targets.VARIANTS`.
        profile: Name of the precision profile.
        layout: "split" (encoders and fusion are separate models) or "fused" (`export.graphs.fuse`).
        optimization: Triton's `optimization` of every graph, as JSON (`export.targets.make_optimization`).
        cores: Number of processor cores of the server's machine. Default: those of this machine.
    """

    target: str = "cpu"
    variant: str = "latency"
    profile: str = "fp32"
    layout: str = "split"
    optimization: Mapping[str, Any] = field(default_factory=dict)
    cores: int = field(default_factory=count_cores)

    def check(self) -> None:
        """Raise ConfigError if a name is unknown."""
        check_target(self.target, self.variant)
        if self.layout not in LAYOUTS:
            raise ConfigError(f"The layout of the graphs must be {' or '.join(LAYOUTS)}, not {self.layout}.")

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        """The served models of this layout."""
        models = LAYOUTS[self.layout]  # type: ignore[index]
        return drop_checks(models) if self.graphs_check else models

    @property
    def graphs_check(self) -> bool:
        """Whether the backend of these graphs checks token ids itself, so that no step before them does."""
        return self.layout == "fused" and needs_embedded({"optimization": self.optimization})

    @property
    def graphs(self) -> tuple[str, ...]:
        """The models that are ONNX graphs."""
        return tuple(name for name, spec in self.models.items() if spec.backend == "onnxruntime")


def read_template(name: str) -> Any:
    """Parse the template config of one model into a Triton `ModelConfig` message.

    Raises:
        ArtifactError: The template is missing, or it is not a config.
    """
    path = TEMPLATES / name / CONFIG_NAME
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise ArtifactError(f"This installation lacks {path}. Install the package again.") from error
    except text_format.ParseError as error:
        raise ArtifactError(f"{path} is not a Triton config: {error}. Install the package again.") from error


def fill_config(bundle: Bundle, spec: ModelSpec, deployment: Deployment | None = None) -> Any:
    """Return the `ModelConfig` of one model with its sizes, parameters and settings.

    Raises:
        ConfigError: The bundle's config lacks a setting, or a setting of the deployment is unknown.
        ArtifactError: The bundle's sizes or the template are missing.
    """
    deployment = deployment or Deployment()
    sizes = read_sizes(bundle)
    config = read_template(spec.name)
    if deployment.layout == "fused" and spec.backend == "ensemble":
        config = fuse_ensemble(config, spec.name.split("_")[1])
        config = drop_check(config) if deployment.graphs_check else config
    for entries, tensors in ((config.input, spec.inputs), (config.output, spec.outputs)):
        for entry, tensor in zip(entries, tensors, strict=True):
            entry.dims[:] = tensor.dims(sizes)
    for key, value in _make_parameters(bundle, spec, sizes, deployment).items():
        config.parameters[key].string_value = value
    apply_settings(
        config,
        spec,
        target=deployment.target,
        variant=deployment.variant,
        sizes=sizes,
        max_length=int(_read_setting(bundle, "max_length")),
        optimization=deployment.optimization,
        cores=deployment.cores,
    )
    return config


def _make_parameters(
    bundle: Bundle, spec: ModelSpec, sizes: Mapping[str, int], deployment: Deployment
) -> dict[str, str]:
    values: dict[str, str] = {"fingerprint": bundle.fingerprint}
    inputs = set(spec.inputs)
    if spec.backend == "python" and IMAGE_BYTES in inputs:
        values["image_size"] = str(sizes["S"])
    if spec.backend == "python" and REPORT in inputs:
        values |= {key: _read_setting(bundle, key) for key in ("text_mode", "max_length")}
    if spec.backend == "ensemble":
        values |= {
            "decisions": json.dumps(bundle.decisions.describe()),
            "text_mode": _read_setting(bundle, "text_mode"),
            "max_length": _read_setting(bundle, "max_length"),
            "vocabulary_size": str(read_token_limits(bundle).vocabulary_size),
            "image_size": str(sizes["S"]),
            IMAGE_READING_PARAMETER: str(IMAGE_READING),
            "embedding_size": str(sizes["D"]),
            LABELS_PARAMETER: str(bundle.label_part),
            "image_tokens_grid": str(_read_grid(bundle, sizes)),
            "trained_on": bundle.trained_on,
            "trained_ways": ",".join(bundle.trained_ways),
            "trained_views": str(bundle.trained_views),
            "most_views": str(MAX_VIEWS),
            "profile": deployment.profile,
        }
        if bundle.unmeasured:
            values["unmeasured"] = ",".join(bundle.unmeasured)
        if bundle.held_out:
            values["held_out"] = ",".join(bundle.held_out)
        if needs_embedded({"optimization": deployment.optimization}):
            values[REQUIRED_BACKEND] = EMBEDDED
    temperature = bundle.config.get("training", {}).get("loss", {}).get("temperature")
    if spec.backend == "ensemble" and temperature:
        values["temperature"] = str(temperature)
    return values


def _read_setting(bundle: Bundle, key: str) -> str:
    value = bundle.config.get(key)
    if value in (None, ""):
        raise ConfigError(f"The config of {bundle.path} lacks {key}. Train the model again.")
    return str(value)


def read_token_limits(bundle: Bundle) -> TokenLimits:
    """Return the token ids that the bundle's model can read. Raise ConfigError if its config does not state them."""
    size = bundle.config.get("model", {}).get("vocabulary_size")
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"The config of {bundle.path} lacks model.vocabulary_size. Train the model again.")
    return TokenLimits(size, int(_read_setting(bundle, "max_length")))


def _read_grid(bundle: Bundle, sizes: Mapping[str, int]) -> int:
    """Return the side of the square of image tokens, which are in the order of its rows."""
    grid = math.isqrt(sizes["N"])
    if grid * grid != sizes["N"]:
        raise ConfigError(
            f"The {sizes['N']} image tokens of {bundle.path} do not form a square. Train a model whose image size is a "
            "multiple of its patch size."
        )
    return grid


def find_difference(old: Any, new: Any) -> str | None:
    """Return the name of a field that all versions share and in which two configs of one model differ, or None.

    The parameters of an ensemble may differ, because each version of it is served with its own config.
    """
    configs = []
    for config in (old, new):
        copy = type(config)()
        copy.CopyFrom(config)
        for name in _FREE_FIELDS:
            copy.ClearField(name)
        copy.parameters.pop("fingerprint", None)
        if copy.platform == "ensemble":
            copy.ClearField("parameters")
            pin(copy, 1)
        configs.append(copy)
    names = [entry.name for entry in configs[0].DESCRIPTOR.fields]
    return next((name for name in names if getattr(configs[0], name) != getattr(configs[1], name)), None)
