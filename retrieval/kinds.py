"""The kinds of index that can answer searches, their parameters, and the memory that they need.

`flat` compares every embedding. All other kinds are approximate: FAISS proposes candidates by codes, and their scores
are computed again from the embeddings. So a kind may miss a case, but each score is exact.

    hnsw      a graph of near neighbours over codes of 8 bits
    ivf_flat  lists of near embeddings; only the lists nearest to the query are searched
    sq8       the same with 8 bits for each value
    ivf_pq    the same with product quantisation: some values of an embedding share one byte
    rabitq    the same with RaBitQ: 1 to 8 bits for each value, after a random rotation
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from contract.errors import ConfigError

FLAT: Final = "flat"
# What an operator gets who chooses nothing else; see `retrieval.builder.IndexPlan`.
RECALL_FLOOR: Final = 0.95
GROWTH: Final = 0.25
BLOCK: Final = 16  # dimensions are padded to a multiple of it
_SPECIFICATION: Final = re.compile(r"([a-z0-9_]+)(?::(.*))?")


@dataclass(frozen=True)
class Parameter:
    """A whole number that a kind needs: its range, its meaning, and its default for so many cases and values."""

    least: int
    most: int
    meaning: str
    choose: Callable[[int, int], int]


@dataclass(frozen=True)
class Kind:
    """A kind of index.

    Attributes:
        name: Its name on the command line.
        storage: The FAISS storage of a code, as `faiss.index_factory` names it, with the parameters in braces.
        parameters: Name -> parameter.
        rotates: Whether the embeddings are turned by a random rotation before they are coded.
    """

    name: str
    storage: str
    parameters: Mapping[str, Parameter] = field(repr=False)
    rotates: bool = False

    @property
    def has_lists(self) -> bool:
        """Whether the embeddings are divided into lists."""
        return "lists" in self.parameters


@dataclass(frozen=True)
class KindChoice:
    """A kind with the parameters that somebody chose; `resolve` adds the others."""

    kind: Kind
    chosen: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_flat(self) -> bool:
        """Whether every embedding is compared."""
        return self.kind.name == FLAT

    def resolve(self, cases: int, dimension: int) -> dict[str, int]:
        """Return all parameters for a number of cases, each at least 1, and D values."""
        found = {}
        for name, parameter in self.kind.parameters.items():
            value = self.chosen.get(name) or parameter.choose(cases, pad_dimension(dimension))
            found[name] = min(max(value, parameter.least), parameter.most)
        if self.kind.has_lists:
            found["lists"] = min(found["lists"], cases)
            found["probes"] = min(found["probes"], found["lists"])
        return found

    def __str__(self) -> str:
        return describe_kind(self.kind.name, self.chosen)


def pad_dimension(dimension: int) -> int:
    """Return the next multiple of `BLOCK`."""
    return -(-dimension // BLOCK) * BLOCK


def describe_kind(name: str, parameters: Mapping[str, int]) -> str:
    """Return a kind with parameters as the command line takes it, such as "rabitq:bits=2,probes=16"."""
    values = ",".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name}:{values}" if values else name


def parse_kind(text: str) -> KindChoice:
    """Read KIND[:parameter=value,...].

    Raises:
        ConfigError: The kind or a parameter is unknown, or a value is out of its range. The message names the choices.
    """
    match = _SPECIFICATION.fullmatch(text.strip())
    if match is None or match[1] not in KINDS:
        raise ConfigError(f"There is no index {text!r}. Choose from {', '.join(KINDS)}.")
    kind, chosen = KINDS[match[1]], dict[str, int]()
    for part in match[2].split(",") if match[2] else ():
        name, _, value = part.partition("=")
        if name not in kind.parameters:
            known = ", ".join(kind.parameters) or "none"
            raise ConfigError(f"The index {kind.name} has no parameter {name!r}. It has {known}.")
        limits = kind.parameters[name]
        if not value.isdecimal() or not limits.least <= int(value) <= limits.most:
            raise ConfigError(
                f"{name} of the index {kind.name} must be a whole number from {limits.least} to {limits.most}, "
                f"not {value!r}."
            )
        chosen[name] = int(value)
    return KindChoice(kind, MappingProxyType(chosen))


def _list_parameters(**others: Parameter) -> dict[str, Parameter]:
    return {
        "lists": Parameter(1, 2**20, "number of lists", lambda cases, _: round(4 * math.sqrt(cases))),
        "probes": Parameter(
            1,
            2**20,
            "lists that a search reads",
            lambda cases, _: max(16, round(math.sqrt(cases) / 16)),
        ),
        **others,
    }


def _refine(default: int) -> Parameter:
    return Parameter(
        1, 1000, "candidates for each case of an answer, whose scores are computed", lambda *_: default
    )


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(FLAT, "Flat", {}),
        Kind(
            "hnsw",
            "HNSW{links}_SQ8",
            {
                "links": Parameter(4, 128, "neighbours of a case in the graph", lambda *_: 32),
                "effort": Parameter(8, 4096, "cases that the construction looks at", lambda *_: 80),
                "ef": Parameter(8, 65536, "cases that a search looks at", lambda *_: 128),
                "refine": _refine(4),
            },
        ),
        Kind("ivf_flat", "IVF{lists},Flat", _list_parameters(refine=_refine(2))),
        Kind("sq8", "IVF{lists},SQ8", _list_parameters(refine=_refine(4))),
        Kind(
            "ivf_pq",
            "IVF{lists},PQ{bytes}",
            _list_parameters(
                bytes=Parameter(
                    1,
                    2048,
                    "bytes of a code; they must divide the padded dimension",
                    lambda _, dimension: dimension // 4,
                ),
                refine=_refine(20),
            ),
        ),
        Kind(
            "rabitq",
            "IVF{lists},RaBitQ{bits}",
            _list_parameters(
                bits=Parameter(1, 8, "bits for each value", lambda *_: 2),
                refine=_refine(10),
            ),
            rotates=True,
        ),
    )
}
