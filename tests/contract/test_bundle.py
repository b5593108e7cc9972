"""The bundle on disk: sealed, verified, written whole or not at all."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from contract.bundle import (
    CONFIG,
    DECIDING_FILES,
    LABELS_FILE,
    MANIFEST,
    MODEL_CARD,
    REQUIRED_FILES,
    SPLIT,
    Bundle,
    amend_bundle,
    compute_fingerprint,
    compute_sha256,
    load_bundle,
    read_labels,
    require_same_fingerprint,
    seal_bundle,
    write_directory,
    write_json,
    write_labels,
)
from contract.decisions import Decisions, ServedLabel
from contract.errors import ArtifactError, ConfigError, FingerprintError
from contract.labels import LABEL_KEYS, LABELS

SERVED = tuple(ServedLabel(label.key, label.name, 0.5, 1.5, -0.25) for label in LABELS)
DECISIONS = Decisions({"study": SERVED, "image": tuple(replace(label, threshold=0.1) for label in SERVED)})


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A sealed bundle whose weights are no weights: nothing here reads them."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    for name in REQUIRED_FILES:
        (directory / name).write_text(f"content of {name}")
    write_json(directory / CONFIG, {"size": 224})
    write_labels(directory, DECISIONS)
    seal_bundle(directory, {"seed": 7, "git_commit": "abc"})
    return directory


def edit_manifest(directory: Path, **changes: object) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest.update(changes)
    (directory / MANIFEST).write_text(json.dumps(manifest))


def test_a_sealed_bundle_is_read_back(sealed):
    bundle = load_bundle(str(sealed))
    assert bundle.path == sealed
    assert bundle.decisions == DECISIONS
    assert bundle.config == {"size": 224}
    assert bundle.manifest["seed"] == 7
    assert set(bundle.manifest["files"]) == set(REQUIRED_FILES)
    assert bundle.fingerprint == bundle.manifest["fingerprint"]
    assert len(bytes.fromhex(bundle.fingerprint)) == 32
    assert bundle.tokenizer_path.is_file()
    assert bundle.weights_path.read_text() == "content of model.safetensors"


def test_details_do_not_replace_hashes_or_fingerprint(sealed):
    seal_bundle(sealed, {"files": {}, "fingerprint": "0" * 64, "seed": 1})
    assert load_bundle(sealed).manifest["seed"] == 1


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_changed_file_is_named(sealed, name):
    with (sealed / name).open("a") as file:
        file.write(" ")
    with pytest.raises(ArtifactError, match=f"{name} was changed after the bundle was written"):
        load_bundle(sealed)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file_is_named(sealed, name):
    (sealed / name).unlink()
    with pytest.raises(ArtifactError, match=f"lacks {name}"):
        load_bundle(sealed)
    with pytest.raises(ArtifactError, match=f"lacks {name}"):
        seal_bundle(sealed, {})


def test_a_file_that_is_a_directory_is_missing(sealed):
    (sealed / CONFIG).unlink()
    (sealed / CONFIG).mkdir()
    with pytest.raises(ArtifactError, match=f"lacks {CONFIG}"):
        load_bundle(sealed)


def test_a_file_that_cannot_be_read_is_named(sealed, monkeypatch):
    monkeypatch.setattr("contract.bundle.compute_sha256", raise_permission_error)
    with pytest.raises(ArtifactError, match=r"cannot be read: PermissionError\.$"):
        load_bundle(sealed)


def raise_permission_error(path: Path) -> str:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_fingerprint_depends_on_what_decides_the_answers(sealed, name):
    before = load_bundle(sealed).fingerprint
    content = (sealed / name).read_text()
    (sealed / name).write_text(content + "\n")
    after = seal_bundle(sealed, {})
    assert (after != before) is (name in DECIDING_FILES)
    (sealed / name).write_text(content)
    assert seal_bundle(sealed, {"other": "details"}) == before


def test_further_files_are_sealed_but_do_not_count(sealed):
    before = load_bundle(sealed).fingerprint
    (sealed / "more").mkdir()
    (sealed / "more" / "curve.json").write_text("{}")
    assert seal_bundle(sealed, {}) == before
    assert "more/curve.json" in load_bundle(sealed).manifest["files"]
    (sealed / "more" / "curve.json").write_text("{1}")
    with pytest.raises(ArtifactError, match=r"more/curve\.json was changed"):
        load_bundle(sealed)


def test_fingerprint_of_known_hashes():
    hashes = {name: str(number) * 64 for number, name in enumerate(DECIDING_FILES)}
    fingerprint = compute_fingerprint({**hashes, "metrics.json": "x"})
    assert fingerprint == compute_fingerprint(dict(reversed(hashes.items())))
    # by sha256sum over the lines "model.safetensors:000...", "config.json:111...", "tokenizer.json:222...", ...
    assert fingerprint == "15b2224fef421b2dad38b8fd77cd820010de4f6468244811c292771e607a0337"


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert compute_sha256(tmp_path / "abc") == expected


def test_wrong_fingerprint_names_both(sealed):
    real = load_bundle(sealed).fingerprint
    edit_manifest(sealed, fingerprint="b" * 64)
    with pytest.raises(FingerprintError) as info:
        load_bundle(sealed)
    assert real[:12] in str(info.value)
    assert "b" * 12 in str(info.value)


def test_fingerprints_are_compared():
    require_same_fingerprint("a" * 64, "a" * 64, expected_from="x", found_from="y")
    with pytest.raises(
        FingerprintError, match=r"y was made by model \(none\), but x is model aaaaaaaaaaaa\."
    ):
        require_same_fingerprint("a" * 64, "", expected_from="x", found_from="y")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "more/../../secret"])
def test_a_manifest_does_not_reach_outside(sealed, name):
    (sealed.parent / "secret").write_text("secret")
    (sealed / "more").mkdir()
    files = json.loads((sealed / MANIFEST).read_text())["files"]
    edit_manifest(sealed, files={**files, name: compute_sha256(sealed.parent / "secret")})
    with pytest.raises(ArtifactError, match=r"lists a file outside the bundle\.$"):
        load_bundle(sealed)


def test_a_link_out_of_the_bundle_is_refused(sealed):
    shutil.move(sealed / CONFIG, sealed.parent / CONFIG)
    (sealed / CONFIG).symlink_to(sealed.parent / CONFIG)
    with pytest.raises(ArtifactError, match="outside the bundle"):
        load_bundle(sealed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "must hold a JSON object"),
        (b"{}", "does not list the files of a bundle"),
        (b'{"files": []}', "does not list the files of a bundle"),
        (b'{"files": {"config.json": "0"}}', "does not list the files of a bundle"),
    ],
)
def test_broken_manifest(sealed, content, words):
    (sealed / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        load_bundle(sealed)


@pytest.mark.parametrize("value", [None, 5, [], {"a": 1}])
def test_hashes_of_another_kind(sealed, value):
    files = json.loads((sealed / MANIFEST).read_text())["files"]
    edit_manifest(sealed, files={**files, CONFIG: value})
    with pytest.raises(ArtifactError, match=f"{CONFIG} was changed"):
        load_bundle(sealed)


def test_no_bundle(tmp_path):
    with pytest.raises(ArtifactError, match="is not a model bundle"):
        load_bundle(tmp_path / "missing")
    with pytest.raises(ArtifactError, match="is not a model bundle"):
        load_bundle(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError):
        load_bundle(tmp_path / "file")


# --- labels ------------------------------------------------------------------------------------------------


def test_labels_are_read_back_way_by_way(tmp_path):
    write_labels(tmp_path, DECISIONS)
    assert read_labels(tmp_path / LABELS_FILE) == DECISIONS
    content = json.loads((tmp_path / LABELS_FILE).read_text())
    assert content["format"] == 2
    assert set(content["ways"]) == {"study", "image"}  # this model was not trained on reports
    assert set(content["ways"]["image"][0]) == {"key", "name", "threshold", "scale", "bias"}


def test_labels_of_an_older_version_are_refused_with_advice(tmp_path):
    write_json(tmp_path / LABELS_FILE, {"labels": [label.to_dict() for label in SERVED]})
    with pytest.raises(ArtifactError, match=r"older version, with one threshold per label.*train") as caught:
        read_labels(tmp_path / LABELS_FILE)
    assert str(caught.value).count(".") - str(tmp_path).count(".") == 3  # two sentences, and labels.json


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "not a label file of format 2"),
        ({"format": 3, "ways": {}}, "not a label file of format 2"),
        ({"format": 2}, "labels of each way"),
        ({"format": 2, "ways": {"study": [5]}}, "labels of each way"),
        ({"format": 2, "ways": {"study": []}}, "22 categories in their order"),
    ],
)
def test_no_label_file(tmp_path, value, words):
    write_json(tmp_path / LABELS_FILE, value)
    with pytest.raises(ArtifactError, match=words):
        read_labels(tmp_path / LABELS_FILE)


def test_a_category_of_another_name_is_refused(tmp_path):
    write_labels(tmp_path, Decisions({"text": (replace(SERVED[0], name="Other"), *SERVED[1:])}))
    with pytest.raises(ArtifactError, match="names a category differently"):
        read_labels(tmp_path / LABELS_FILE)


def test_an_older_version_is_converted_though_it_names_categories_differently(tmp_path):
    older = [label.to_dict() for label in (replace(SERVED[0], name="Other"), *SERVED[1:])]
    write_json(tmp_path / LABELS_FILE, {"labels": older})
    assert read_labels(tmp_path / LABELS_FILE, convert=True) == Decisions.repeat(SERVED)


@pytest.mark.parametrize("labels", [5, [5], [{"key": ["cardiac"]}], []])
def test_no_labels_of_an_older_version(tmp_path, labels):
    write_json(tmp_path / LABELS_FILE, {"labels": labels})
    with pytest.raises(ArtifactError, match=r"labels of each way|22 categories"):
        read_labels(tmp_path / LABELS_FILE, convert=True)


def test_the_categories():
    assert len(LABELS) == len(set(LABEL_KEYS)) == len({label.name for label in LABELS}) == 22
    assert LABEL_KEYS[0] == "general_radiographic"
    assert LABEL_KEYS[-1] == "normal"


# --- write_directory ---------------------------------------------------------------------------------------


def test_a_directory_appears_whole(tmp_path):
    target = tmp_path / "a" / "b"
    with write_directory(target) as scratch:
        (scratch / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert target.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def write_and_raise(target: Path, error: BaseException) -> None:
    with write_directory(target) as scratch:
        (scratch / "file").write_text("x")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), ArtifactError("x"), SystemExit(3)])
def test_nothing_is_left_on_an_error(tmp_path, error):
    with pytest.raises(type(error)) as info:
        write_and_raise(tmp_path / "target", error)
    assert info.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_artifact_error(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ArtifactError) as info:
        write_and_raise(tmp_path / "target", full)
    assert str(info.value) == f"Could not write {tmp_path / 'target'}: No space left on device."
    assert info.value.__cause__ is full
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rename_leaves_nothing(tmp_path, monkeypatch):
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match="Read-only file system"), write_directory(tmp_path / "target"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_existing_target_is_left_alone(tmp_path, kind):
    target = tmp_path / "target"
    target.mkdir() if kind == "directory" else target.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"), write_directory(target):
        pytest.fail("the body must not run")
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_that_appears_meanwhile_is_left_alone(tmp_path, tmp_path_factory):
    target, theirs = tmp_path / "target", tmp_path_factory.mktemp("other")
    (theirs / "theirs").write_text("y")
    with pytest.raises(ArtifactError), write_directory(target):
        shutil.copytree(theirs, target)
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError), write_directory(tmp_path / "file" / "target"):
        pytest.fail("the body must not run")


def test_equal_values_give_equal_files(tmp_path):
    write_json(tmp_path / "a", {"x": 1, "y": [1.5]})
    write_json(tmp_path / "b", {"y": [1.5], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_text().endswith("}\n")


# --- amended ---------------------------------------------------------------------------------------------------


def test_files_are_added_to_a_bundle_that_stays_the_same_model(sealed):
    before = load_bundle(sealed)
    with amend_bundle(before, changed=(MODEL_CARD,)) as scratch:
        assert not (sealed / "evaluation").exists()
        (scratch / MODEL_CARD).write_text("A longer card.")
        (scratch / "evaluation").mkdir()
        (scratch / "evaluation" / "evaluation.json").write_text("{}")
    after = load_bundle(sealed)
    assert after.fingerprint == before.fingerprint
    assert set(after.manifest["files"]) == {*REQUIRED_FILES, "evaluation/evaluation.json"}
    assert after.manifest["seed"] == 7
    assert (sealed / MODEL_CARD).read_text() == "A longer card."
    assert [path.name for path in sealed.parent.iterdir()] == ["bundle"]
    with amend_bundle(after, changed=("evaluation/evaluation.json",)) as scratch:
        (scratch / "evaluation" / "evaluation.json").write_text('{"again": 1}')
    assert json.loads((sealed / "evaluation" / "evaluation.json").read_text()) == {"again": 1}


def amend(bundle, name, text, failure=None) -> None:
    with amend_bundle(bundle) as scratch:
        (scratch / name).unlink()
        (scratch / name).write_text(text)
        if failure:
            raise failure


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_leaves_the_bundle_as_it_was(sealed, failure):
    before = load_bundle(sealed)
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else ArtifactError
    with pytest.raises(expected):
        amend(before, MODEL_CARD, "half a card", failure)
    assert load_bundle(sealed) == before
    assert [path.name for path in sealed.parent.iterdir()] == ["bundle"]


def test_a_failed_second_rename_leaves_the_bundle_as_it_was(sealed, monkeypatch):
    before, rename = load_bundle(sealed), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if Path(target) == sealed and not path.name.endswith("-old"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match="No space left"):
        amend(before, MODEL_CARD, "a card")
    assert load_bundle(sealed) == before
    assert [path.name for path in sealed.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", DECIDING_FILES)
def test_what_decides_the_answers_is_never_amended(sealed, name):
    before = load_bundle(sealed)
    with pytest.raises(ConfigError, match="Train a new bundle"), amend_bundle(before, changed=(name,)):
        pass
    with pytest.raises(FingerprintError):
        amend(before, name, "other weights")
    assert load_bundle(sealed) == before


def test_a_bundle_is_amended_on_a_file_system_without_links(sealed, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    before = load_bundle(sealed)
    with amend_bundle(before) as scratch:
        (scratch / "note.md").write_text("new")
    assert load_bundle(sealed).fingerprint == before.fingerprint


def test_the_split_names_every_part(sealed):
    (sealed / SPLIT).write_text('{"test": ["00000061_012"], "other": ["x"]}')
    bundle = Bundle(sealed, "f" * 64, {}, DECISIONS, {})
    assert bundle.split == {"train": [], "validation": [], "test": ["00000061_012"]}
    (sealed / SPLIT).write_text("[]")
    with pytest.raises(ArtifactError, match=r"split\.json must hold a JSON object"):
        assert bundle.split
