"""The log of one part, written to disk after each figure, so that an interrupt loses only the current figure."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from contract.errors import ArtifactError, ConfigError
from contract.files import write_file

Device = Literal["cuda", "cpu"]
Precision = Literal["fp16", "bf16"]
PRECISIONS: Final[tuple[Precision, ...]] = ("bf16", "fp16")
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
PARTS_FOLDER: Final = "parts"


@dataclass(frozen=True)
class Settings:
    """The settings that affect the figures, besides the machine.

    Attributes:
        device: "cuda", or "cpu" to try the command without a GPU.
        size: Name of a training config, for the size of the model. Its weights are random.
        length: Number of tokens of a text.
        seconds: Seconds to measure each figure.
        batches: Batch sizes for the throughput.
        vectors: Number of embeddings that FAISS searches.
    """

    device: Device = "cuda"
    size: str = "published"
    length: int = 128
    seconds: float = 0.5
    batches: tuple[int, ...] = BATCHES
    vectors: int = 100_000

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "batches": list(self.batches)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Return settings from the result of `to_dict`."""
        return cls(**{**values, "batches": tuple(values["batches"])})


class OutOfTimeError(Exception):
    """The part's share of the time is used up. The next run measures the missing figures."""


class Log:
    """The entries of one part: figures by name, and reasons for missing figures."""

    def __init__(self, out: Path, part: str, deadline: float = float("inf")) -> None:
        """Continue the log of an earlier run, if there is one.

        Args:
            out: Directory of the whole run.
            part: Name of the part.
            deadline: `time.time()` after which no figure is started.
        """
        self.out, self.part = out, part
        self._path = out / PARTS_FOLDER / f"{part}.json"
        self._deadline = deadline
        self.figures: dict[str, Any] = read_entries(self._path).get("figures", {})
        self.reasons: dict[str, str] = {}  # figures that failed before are tried again

    def measure(self, name: str, function: Callable[[], Mapping[str, Any]]) -> bool:
        """Measure one figure, unless an earlier run did. An error is recorded as a sentence, and the part continues.

        Returns:
            Whether the figure exists now.

        Raises:
            OutOfTimeError: There is no time left.
        """
        if name in self.figures:
            return True
        if time.time() >= self._deadline:
            raise OutOfTimeError
        try:
            self.figures[name] = dict(function())
        except Exception as error:  # an error such as out of memory must not stop the other figures
            self.reasons[name] = describe_failure(error)
        self.save()
        return name in self.figures

    def measure_series(self, series: Iterable[tuple[str, Callable[[], Mapping[str, Any]]]]) -> None:
        """Measure figures of growing difficulty. After a failure, the following ones are not tried."""
        for name, function in series:
            if not self.measure(name, function):
                self.reasons[name] += " The following figures were left out."
                self.save()
                return

    def skip(self, name: str, reason: str) -> None:
        """Record one sentence with the reason for a missing figure."""
        self.reasons[name] = reason
        self.save()

    def save(self) -> None:
        """Write the entries. Raise ArtifactError if the disk refuses the write."""
        write_file(
            self._path, json.dumps({"figures": self.figures, "reasons": self.reasons}, indent=1) + "\n"
        )


def read_entries(path: Path) -> dict[str, Any]:
    """Return the entries that a part wrote; {} without any.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged. Remove it to measure its figures again.") from error
    return values


def describe_failure(error: Exception) -> str:
    """Return one sentence about an error."""
    if isinstance(error, ModuleNotFoundError):
        return f"The package {error.name} is not installed. Put its wheel into the folder of --wheels."
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ConfigError) else f"It failed: {type(error).__name__}: {text}"
