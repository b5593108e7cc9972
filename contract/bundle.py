"""The model bundle: one directory with all files of a trained model, and hashes that prove it is complete.

    model.safetensors  weights             labels.json   thresholds, calibration
    config.json        model and training  metrics.json  results, and the data they were measured on
    tokenizer.json     text vocabulary     split.json    study ids of train / validation / test
    MODEL_CARD.md      for people          manifest.json sha256 of each file, fingerprint, versions
    manifest.json.minisig                  signature, if the bundle is signed (`contract.signatures`)

The fingerprint is the SHA-256 over the names and hashes of the files that decide the answers (weights,
config, tokenizer, labels). It is stamped into every ONNX graph, Triton config and index made from the bundle.
"""

import hashlib
import json
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.decisions import Decisions, parse_decisions
from contract.embedding import count_label_part
from contract.errors import ArtifactError, ConfigError, FingerprintError
from contract.files import write_file
from contract.labels import LABEL_NAMES
from contract.signatures import SUFFIX, TrustedKeys
from contract.training_data import WAYS, read_held_out, read_trained_on, read_trained_ways, read_unmeasured

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = f"{MANIFEST}{SUFFIX}"
WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
LABELS_FILE: Final = "labels.json"
METRICS: Final = "metrics.json"
SPLIT: Final = "split.json"
PARTS: Final = ("train", "validation", "test")  # parts of a split
MODEL_CARD: Final = "MODEL_CARD.md"
DECIDING_FILES: Final = (WEIGHTS, CONFIG, TOKENIZER, LABELS_FILE)
REQUIRED_FILES: Final = (*DECIDING_FILES, METRICS, SPLIT, MODEL_CARD)
LABELS_FORMAT: Final = 2  # format 1 has no number in the file, and one set of labels for all ways


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    fingerprint: str  # 64 hexadecimal digits
    config: dict[str, Any]
    decisions: Decisions
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, {self.fingerprint[:12]!r})"

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer file, for `contract.report.text.ReportTokenizer`."""
        return self.path / TOKENIZER

    @property
    def trained_on(self) -> str:
        """The collection that the model was trained on; "unknown" if the bundle does not record it."""
        return read_trained_on(self.manifest.get("data_source"))

    @property
    def trained_ways(self) -> tuple[str, ...]:
        """The ways to read a study that the model was trained for; all ways if the bundle does not record them."""
        return read_trained_ways(_read_json(self.path / METRICS))

    @property
    def trained_views(self) -> int:
        """How many images of one study the model was trained to fuse at most; 1 where the bundle does not record it."""
        views = self.config.get("training", {}).get("data", {}).get("views", 1)
        return views if isinstance(views, int) and views > 1 else 1

    @property
    def label_part(self) -> int:
        """Length of the label part of the embeddings; see `contract.embedding`."""
        return count_label_part(self.config["model"])

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Keys of the labels with too few test cases to be measured; without those that were held out."""
        keys = read_unmeasured(_read_json(self.path / METRICS))
        return tuple(key for key in keys if key not in self.held_out)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Keys of the labels that were held out of training, in the order of the logits."""
        return read_held_out(self.config)

    @property
    def split(self) -> dict[str, list[str]]:
        """Part ("train", "validation", "test") -> study ids as in the table; [] if the part is missing."""
        recorded = _read_json(self.path / SPLIT)
        return {part: list(recorded.get(part, ())) for part in PARTS}

    @property
    def is_signed(self) -> bool:
        """Whether a signature lies beside the manifest. It need not be valid."""
        return (self.path / SIGNATURE).exists()

    @property
    def weights_path(self) -> Path:
        """The safetensors file with the weights."""
        return self.path / WEIGHTS


def compute_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def compute_fingerprint(hashes: Mapping[str, str]) -> str:
    """Return the fingerprint of file hashes (name -> SHA-256). Only the files that decide the answers count."""
    lines = "".join(f"{name}:{hashes[name]}\n" for name in DECIDING_FILES)
    return hashlib.sha256(lines.encode()).hexdigest()


def require_same_fingerprint(expected: str, found: str, *, expected_from: str, found_from: str) -> None:
    """Raise FingerprintError with both values unless two artifacts come from the same model."""
    if expected != found:
        raise FingerprintError(
            f"{found_from} was made by model {found[:12] or '(none)'}, but {expected_from} is model "
            f"{expected[:12] or '(none)'}. Use artifacts of one bundle."
        )


@contextmanager
def write_directory(target: Path) -> Iterator[Path]:
    """Yield a scratch directory. At the end it is renamed to `target`; on any error it is deleted.

    Raises:
        ConfigError: `target` exists already.
        ArtifactError: The disk refused the write (full, read-only). No files are left.
    """
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} exists already. Choose another directory or remove it.")
    with _open_scratch(target) as scratch:
        yield scratch
        apply_umask(scratch)
        scratch.rename(target)


@contextmanager
def amend_bundle(bundle: "Bundle", *, changed: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a copy of a bundle to add files to. At the end the copy is sealed and replaces the bundle.

    The fingerprint stays, because the files that decide the answers stay. The signature goes, because the manifest
    changes. On any error the bundle is unchanged.

    Args:
        bundle: A verified bundle.
        changed: Names of files that the caller overwrites. The other files must not be written, because they are links.

    Raises:
        ConfigError: `changed` names a file that decides the answers.
        FingerprintError: A file that decides the answers was changed.
        ArtifactError: The disk refused the write.
    """
    if deciding := sorted(set(changed) & set(DECIDING_FILES)):
        raise ConfigError(
            f"{', '.join(deciding)} cannot be changed, because the answers of the bundle depend on it. "
            "Train a new bundle."
        )
    details = {key: value for key, value in bundle.manifest.items() if key not in {"files", "fingerprint"}}
    path = bundle.path.resolve()  # a link to a bundle stays a link
    with _open_scratch(path) as scratch:
        for name in bundle.manifest["files"]:
            _place_file(bundle.path / name, scratch / name, link=name not in changed)
        yield scratch
        fingerprint = seal_bundle(scratch, details)
        require_same_fingerprint(
            bundle.fingerprint, fingerprint, expected_from=str(bundle.path), found_from="the amended bundle"
        )
        apply_umask(scratch)
        _swap(scratch, path)


def _swap(scratch: Path, path: Path) -> None:
    """Replace the directory `path` with `scratch`. On an error `path` is what it was."""
    old = scratch.with_name(f"{scratch.name}-old")
    path.rename(old)
    try:
        scratch.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _open_scratch(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target`. If it still exists at the end, it is removed."""
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
        scratch.mkdir()  # not mkdtemp, so that the umask decides who may read it
        yield scratch
    except OSError as error:
        raise ArtifactError(f"Could not write {target}: {error.strerror or error}.") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def apply_umask(directory: Path) -> None:
    """Give every file the mode of a new file under the umask, because some libraries create files with mode 0600."""
    mode = stat.S_IMODE(directory.stat().st_mode) & 0o666  # the directory was made under the umask
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _place_file(source: Path, target: Path, *, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            target.hardlink_to(source)
            return
        except OSError:
            pass  # a file system without links
    shutil.copyfile(source, target)


def write_labels(directory: Path, decisions: Decisions) -> None:
    """Write labels.json: the 22 categories for each way to read a study, without values that are None."""
    write_json(directory / LABELS_FILE, {"format": LABELS_FORMAT, "ways": decisions.to_dict()})


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON with sorted keys, so that equal values give equal files; see `write_file`."""
    write_file(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def seal_bundle(directory: Path, details: Mapping[str, Any]) -> str:
    """Write manifest.json over the files in `directory` and return the fingerprint.

    Args:
        directory: Holds every file of REQUIRED_FILES.
        details: Further entries of the manifest: versions, git commit, data hash, seed.

    Raises:
        ArtifactError: A required file is missing.
    """
    missing = [name for name in REQUIRED_FILES if not (directory / name).is_file()]
    if missing:
        raise ArtifactError(f"The bundle {directory} lacks {', '.join(missing)}.")
    (directory / SIGNATURE).unlink(missing_ok=True)  # it would be of another manifest
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    hashes = {path.relative_to(directory).as_posix(): compute_sha256(path) for path in files}
    fingerprint = compute_fingerprint(hashes)
    write_json(directory / MANIFEST, {**details, "fingerprint": fingerprint, "files": hashes})
    return fingerprint


def load_bundle(path: Path | str, *, convert: bool = False, trust: TrustedKeys | None = None) -> Bundle:
    """Read and verify a bundle.

    Args:
        path: Its directory.
        convert: Accept the older label format, which has one set for all ways to read a study.
        trust: The keys of which one must have signed the manifest. This is checked first. None: no signature is needed.

    Raises:
        SignatureError: No key of `trust` signed this manifest.
        ArtifactError: It is not a bundle, a file is missing, or a file was changed after sealing. The message names it.
        FingerprintError: The manifest's fingerprint does not match its files.
    """
    path = Path(path)
    manifest = _read_json(path / MANIFEST, trust)
    hashes = manifest.get("files")
    if not isinstance(hashes, dict) or not set(REQUIRED_FILES) <= set(hashes):
        raise ArtifactError(f"{path / MANIFEST} does not list the files of a bundle.")
    for name, expected in hashes.items():
        _verify_file(path, name, expected)
    fingerprint = compute_fingerprint(hashes)
    require_same_fingerprint(
        fingerprint,
        str(manifest.get("fingerprint", "")),
        expected_from=f"the content of {path}",
        found_from=MANIFEST,
    )
    decisions = read_labels(path / LABELS_FILE, convert=convert)
    return Bundle(path, fingerprint, _read_json(path / CONFIG), decisions, manifest)


def read_labels(path: Path, *, convert: bool = False) -> Decisions:
    """Read labels.json. For `convert` see `load_bundle`.

    Raises:
        ArtifactError: It is not a label file, it has another format, or its numbers are not valid.
    """
    content = _read_json(path)
    if "labels" in content and convert:
        content = {"format": LABELS_FORMAT, "ways": dict.fromkeys(WAYS, _rename(content["labels"]))}
    if "labels" in content:
        raise ArtifactError(
            f"{path} was written by an older version, with one threshold per label for all ways to read a study. Make "
            "a new bundle from it with `cxr calibrate`, or train it again."
        )
    if content.get("format") != LABELS_FORMAT:
        raise ArtifactError(f"{path} is not a label file of format {LABELS_FORMAT}.")
    decisions = parse_decisions(content.get("ways"), source=str(path))
    if any(label.name != LABEL_NAMES[label.key] for labels in decisions.ways.values() for label in labels):
        raise ArtifactError(f"{path} names a category differently from this version of the software.")
    return decisions


def _rename(labels: object) -> object:
    """Return the labels of an older version with the current names. The key identifies a category."""
    if not (isinstance(labels, list) and all(isinstance(entry, dict) for entry in labels)):
        return labels  # the parser refuses it
    return [entry | {"name": LABEL_NAMES.get(str(entry.get("key")), entry.get("name"))} for entry in labels]


def _verify_file(directory: Path, name: str, expected: object) -> None:
    file = directory / name
    if not any(file.resolve().is_relative_to(root) for root in _find_roots(directory)):
        raise ArtifactError(f"{directory / MANIFEST} lists a file outside the bundle.")
    if not file.is_file():
        raise ArtifactError(f"The bundle {directory} lacks {name}.")
    try:
        actual = compute_sha256(file)
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {type(error).__name__}.") from error
    if actual != expected:
        raise ArtifactError(
            f"{file} was changed after the bundle was written (SHA-256 {actual[:12]}, manifest "
            f"{str(expected)[:12]}). Restore the file or train again."
        )


def _find_roots(directory: Path) -> list[Path]:
    """Return the directories that may hold a bundle's files: the bundle and, in the hub's cache, the cache's blobs.

    The cache has <repository>/blobs and <repository>/snapshots/<commit>. The files of a snapshot are links to blobs.
    """
    real = directory.resolve()
    blobs = real.parent.parent / "blobs"
    return [real, blobs] if real.parent.name == "snapshots" else [real]


def _read_json(path: Path, trust: TrustedKeys | None = None) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        if trust is not None:
            trust.check(path, content)
        value = json.loads(content.decode())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path.parent} is not a model bundle: it has no {path.name}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {type(error).__name__}.") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} must hold a JSON object.")
    return value
