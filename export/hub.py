"""Bundle -> a folder for the Hugging Face hub that is a bundle itself: `load_bundle` reads it after a download.

    hf upload OWNER/NAME FOLDER            hf download OWNER/NAME --local-dir FOLDER

What goes out: every file that the manifest lists and nothing else from the bundle's directory. That is weights,
settings, tokenizer, labels, figures, the evaluation's plots, and split.json with the study ids of the collection
(Open-i's numbers; no patient is in them, but look at the ids of your own data first). config.json and the
card name the pretrained weights as they were given in training, a local path included.

Beside them: README.md (the model card, which the hub shows), LICENSE.md (the card's section, where its metadata
points at it), .gitattributes, and with a published repository the graphs in onnx/. No pickles.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.bundle import (
    MANIFEST,
    MODEL_CARD,
    Bundle,
    load_bundle,
    require_same_fingerprint,
    write_directory,
)
from contract.errors import ArtifactError, ConfigError
from contract.tensors import GRAPHS

README: Final = "README.md"
LICENCE: Final = "LICENSE.md"
ATTRIBUTES: Final = ".gitattributes"
GRAPH_FOLDER: Final = "onnx"
# Git must not change line endings: the manifest holds hashes. The rest is what the hub stores as large files.
_ATTRIBUTES: Final = "* -text\n" + "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("safetensors", "onnx", "onnx.data", "png")
)
_LICENCE_SECTION: Final = re.compile(r"^## Licence\n(.*?)(?=^#|^<!--|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class HubFolder:
    """A folder that is ready for upload: its files by name with their size in bytes."""

    path: Path
    fingerprint: str
    files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {"path": str(self.path), "fingerprint": self.fingerprint, "files": self.files}


def check_free(out: Path) -> None:
    """Raise ConfigError when there is something at `out`, before slow work is done for it."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists already; choose another directory or remove it.")


def write_hub_folder(bundle: Bundle | Path | str, out: Path, *, repository: Path | None = None) -> HubFolder:
    """Write the folder, complete or not at all.

    Args:
        bundle: A bundle or its directory.
        out: The folder; must not exist.
        repository: A model repository published from this bundle, whose graphs go into onnx/.

    Raises:
        ConfigError: `out` exists.
        ArtifactError: The bundle is damaged, its card has metadata that the hub does not read, the repository
            lacks a graph, or the disk refused the write; nothing is left.
        FingerprintError: A graph was made from another bundle.
    """
    check_free(out)
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    graphs = _find_graphs(bundle, repository) if repository else {}
    card = _read_card(bundle)
    with write_directory(out) as scratch:
        for name in (*bundle.manifest["files"], MANIFEST):
            _copy(bundle.path / name, scratch / name)
        for name, path in graphs.items():
            _copy(path, scratch / GRAPH_FOLDER / name)
        (scratch / README).write_text(card, encoding="utf-8")
        (scratch / ATTRIBUTES).write_text(_ATTRIBUTES, encoding="utf-8")
        if section := _LICENCE_SECTION.search(card):
            (scratch / LICENCE).write_text(f"# Licence\n\n{section[1].strip()}\n", encoding="utf-8")
        written = load_bundle(scratch)  # a file may have changed since the bundle was read
        require_same_fingerprint(
            bundle.fingerprint, written.fingerprint, expected_from=str(bundle.path), found_from="the copy"
        )
        files = sorted(path for path in scratch.rglob("*") if path.is_file())
        sizes = {path.relative_to(scratch).as_posix(): path.stat().st_size for path in files}
    return HubFolder(out, bundle.fingerprint, sizes)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)  # the content, also of a link into the hub's cache


def _find_graphs(bundle: Bundle, repository: Path) -> dict[str, Path]:
    """Return the files of every graph, each by its name in onnx/, made from this bundle."""
    from export.graphs.checks import read_fingerprint
    from export.versions import find_version

    files: dict[str, Path] = {}
    version = str(find_version(repository))
    for name in GRAPHS:
        graph = repository / name / version / "model.onnx"
        found = read_fingerprint(graph)
        require_same_fingerprint(
            bundle.fingerprint, found, expected_from=str(bundle.path), found_from=str(graph)
        )
        files[f"{name}.onnx"] = graph
        weights = graph.with_name(f"{name}.onnx.data")
        if weights.is_file():  # the graph refers to them by this name
            files[weights.name] = weights
    return files


def _read_card(bundle: Bundle) -> str:
    """Return the model card; a card without metadata, as older versions wrote it, is taken as it is.

    Raises:
        ArtifactError: It is no UTF-8, or its metadata cannot be read.
    """
    import yaml
    from huggingface_hub import ModelCard

    path = bundle.path / MODEL_CARD
    try:
        card = path.read_bytes().decode("utf-8")
        if card.startswith("---"):
            ModelCard(card)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ArtifactError(f"The metadata of {path} cannot be read: {type(error).__name__}.") from error
    return card
