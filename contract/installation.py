"""Where this project's packages are imported from: another folder or file of the same name may shadow one of them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    "bench",
    "cli",
    "client",
    "contract",
    "export",
    "model_repository",
    "retrieval",
    "serving",
    "training",
)
HOME: Final = Path(__file__).resolve().parents[1]  # a checkout, or site-packages


def find_shadowed() -> dict[str, Path]:
    """Return the packages that python takes from another place than `HOME` -> that place, a folder or a file."""
    places = {name: _locate(name) for name in PACKAGES}
    return {name: place for name, place in places.items() if place is not None and place != HOME / name}


def describe_shadowed() -> str | None:
    """Return a sentence about the first package that is shadowed, and what to do; None if there is none."""
    for name, place in find_shadowed().items():
        return (
            f"Python imports the package {name} from {place}, but this installation is in {HOME}: rename the "
            "other one, take its folder off PYTHONPATH, or start in another folder."
        )
    return None


def _locate(name: str) -> Path | None:
    spec = find_spec(name)
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), spec.origin]
    return Path(str(places[0])).resolve()
