"""What the tests of signatures share."""

from pathlib import Path

from contract import bundle as parts
from contract.bundle import (
    WEIGHTS,
    Bundle,
    load_bundle,
    seal_bundle,
    write_directory,
    write_labels,
)
from contract.decisions import Decisions, ServedLabel
from contract.errors import SignatureError
from contract.labels import LABELS
from contract.signatures import TrustedKeys


def no_password() -> str:
    raise AssertionError("this key has no password")


def write_bundle(path: Path, weights: str) -> Bundle:
    """A sealed bundle whose weights are no weights: nothing here reads them."""
    labels = tuple(ServedLabel(label.key, label.name, 0.5, 1.0, 0.0) for label in LABELS)
    with write_directory(path) as scratch:
        for name in parts.REQUIRED_FILES:
            (scratch / name).write_text("{}")
        (scratch / WEIGHTS).write_text(weights)
        write_labels(scratch, Decisions.repeat(labels))
        seal_bundle(scratch, {})
    return load_bundle(path)


def check(path: Path, trust: TrustedKeys) -> str:
    """Return why a bundle is refused; "" if it is not."""
    try:
        load_bundle(path, trust=trust)
    except SignatureError as error:
        return str(error)
    return ""
