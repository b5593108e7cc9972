"""What one part has measured so far, on the disk after each figure, so that an interrupt loses the one under way."""

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
    """What figures depend on beside the machine.

    Attributes:
        device: "cuda", or "cpu" to try the command where no GPU is.
        size: Name of a training config: the size of the model, whose weights are random.
        length: Tokens of a text.
        seconds: How long each figure is measured.
        batches: Batch sizes of the throughput.
        vectors: Embeddings that FAISS searches.
    """

    device: Device = "cuda"
    size: str = "base"
    length: int = 128
    seconds: float = 0.5
    batches: tuple[int, ...] = BATCHES
    vectors: int = 100_000

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "batches": list(self.batches)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Return settings that `to_dict` made."""
        return cls(**{**values, "batches": tuple(values["batches"])})


class OutOfTimeError(Exception):
    """The part's share of the time is used up; what is missing is measured by the next run."""


class Log:
    """The entries of one part: figures by name, and sentences for what could not be measured."""

    def __init__(self, out: Path, part: str, deadline: float = float("inf")) -> None:
        """Go on with what an earlier run wrote.

        Args:
            out: Directory of the whole run.
            part: Name of the part.
            deadline: `time.time()` from which no further figure is begun.
        """
        self.out, self.part = out, part
        self._path = out / PARTS_FOLDER / f"{part}.json"
        self._deadline = deadline
        self.figures: dict[str, Any] = read_entries(self._path).get("figures", {})
        self.reasons: dict[str, str] = {}  # what failed before is tried again

    def measure(self, name: str, function: Callable[[], Mapping[str, Any]]) -> bool:
        """Take one figure, unless an earlier run did; an error becomes a sentence, and the part goes on.

        Returns:
            Whether the figure is there.

        Raises:
            OutOfTimeError: No time is left.
        """
        if name in self.figures:
            return True
        if time.time() >= self._deadline:
            raise OutOfTimeError
        try:
            self.figures[name] = dict(function())
        except Exception as error:  # one that runs out of memory, say, must not end the others
            self.reasons[name] = describe_failure(error)
        self.save()
        return name in self.figures

    def measure_series(self, series: Iterable[tuple[str, Callable[[], Mapping[str, Any]]]]) -> None:
        """Take figures of growing difficulty: where one fails, those behind it are not tried."""
        for name, function in series:
            if not self.measure(name, function):
                self.reasons[name] += " What comes after it was left out."
                self.save()
                return

    def skip(self, name: str, reason: str) -> None:
        """Note in one sentence why something is not measured."""
        self.reasons[name] = reason
        self.save()

    def save(self) -> None:
        """Write the entries; ArtifactError when the disk refuses."""
        write_file(
            self._path, json.dumps({"figures": self.figures, "reasons": self.reasons}, indent=1) + "\n"
        )


def read_entries(path: Path) -> dict[str, Any]:
    """Return what a part wrote; {} where it wrote nothing.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: remove it, and what it held is measured again.") from error
    return values


def describe_failure(error: Exception) -> str:
    """Return an error as one sentence."""
    if isinstance(error, ModuleNotFoundError):
        return (
            f"The package {error.name} is not installed: put its wheel into the folder that --wheels names."
        )
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ConfigError) else f"It failed: {type(error).__name__}: {text}"
