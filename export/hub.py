"""Write a bundle as a folder for the Hugging Face hub. The folder is a bundle too: `load_bundle` reads it.

    hf upload OWNER/NAME FOLDER            hf download OWNER/NAME --local-dir FOLDER

The folder holds the files that the bundle's manifest lists, and no other file of the bundle's directory: weights,
settings, tokenizer, labels, figures, the plots of the evaluation, and split.json with the study ids of the collection.
(The ids of Open-i are numbers that identify no patient. Check the ids of other data before an upload.) config.json and
the card hold the paths of pretrained weights from the training's config. These may be local paths.

The folder also holds README.md (the model card, which the hub displays), LICENSE.md (the licence section of the card,
to which the card's metadata links), .gitattributes, and the graphs of a published repository in onnx/. It holds no
pickles.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.bundle import (
    MANIFEST,
    MODEL_CARD,
    SIGNATURE,
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
# Git must not change line endings, because the manifest holds hashes. The hub stores these suffixes as large files.
_ATTRIBUTES: Final = "* -text\n" + "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("safetensors", "onnx", "onnx.data", "png")
)
_LICENCE_SECTION: Final = re.compile(r"^## Licence\n(.*?)(?=^#|^<!--|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class HubFolder:
    """A folder that is ready for upload. `files` maps the name of each file to its size in bytes."""

    path: Path
    fingerprint: str
    files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {"path": str(self.path), "fingerprint": self.fingerprint, "files": self.files}


def check_free(out: Path) -> None:
    """Raise ConfigError if `out` exists, before slow work starts."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists already. Choose another directory or remove it.")


def write_hub_folder(bundle: Bundle | Path | str, out: Path, *, repository: Path | None = None) -> HubFolder:
    """Write the folder. On an error no files are left.

    Args:
        bundle: A bundle or its directory.
        out: The folder, which must not exist.
        repository: A model repository that was published from this bundle. Its graphs are copied to onnx/.

    Raises:
        ConfigError: `out` exists.
        ArtifactError: The bundle is damaged, the hub cannot read the metadata of its card, the repository lacks a
            graph, or the disk refused the write.
        FingerprintError: A graph was made from another bundle.
    """
    check_free(out)
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    graphs = _find_graphs(bundle, repository) if repository else {}
    card = _read_card(bundle)
    with write_directory(out) as scratch:
        signature = (SIGNATURE,) if bundle.is_signed else ()  # of the manifest, which is copied as it is
        for name in (*bundle.manifest["files"], MANIFEST, *signature):
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
    shutil.copyfile(source, target)  # follows links, because the hub's cache holds links


def _find_graphs(bundle: Bundle, repository: Path) -> dict[str, Path]:
    """Return name in onnx/ -> file, of every graph of the repository; the graphs must be made from this bundle."""
    from export.graphs.checks import read_fingerprint
    from export.versions import find_version

    files: dict[str, Path] = {}
    version = str(find_version(repository))
    for name in GRAPHS:
        graph = repository / name / version / "model.onnx"
        require_same_fingerprint(
            bundle.fingerprint,
            read_fingerprint(graph),
            expected_from=str(bundle.path),
            found_from=str(graph),
        )
        files[f"{name}.onnx"] = graph
        weights = graph.with_name(f"{name}.onnx.data")
        if weights.is_file():  # the graph refers to the weights by this name
            files[weights.name] = weights
    return files


def _read_card(bundle: Bundle) -> str:
    """Return the model card. Older versions wrote a card without metadata, which is valid too.

    Raises:
        ArtifactError: The card is not UTF-8, or its metadata cannot be read.
    """
    import yaml
    from huggingface_hub import ModelCard

    path = bundle.path / MODEL_CARD
    try:
        card = path.read_bytes().decode("utf-8")
        if card.startswith("---"):
            ModelCard(card)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ArtifactError(
            f"The metadata of {path} cannot be read ({type(error).__name__}). Correct the YAML at its start."
        ) from error
    return card
