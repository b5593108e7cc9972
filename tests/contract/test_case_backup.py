"""The list of a backup, which comes from a folder that anybody may have written."""

import json

import pytest

from contract.case_backup import FORMAT, MANIFEST, BackupFile, BackupManifest, read_manifest
from contract.errors import ArtifactError, ConfigError

HASH = "a" * 64
FILE = {"name": "cases.sqlite", "size": 1, "sha256": HASH}
WHOLE = {"format": FORMAT, "made": "2026-11-28T12:00:00+00:00", "files": [FILE], "left_out": []}


def test_a_list_is_read_as_it_was_written(tmp_path):
    manifest = BackupManifest(WHOLE["made"], (BackupFile("cases.sqlite", 1, HASH),), (HASH,))
    (tmp_path / MANIFEST).write_text(manifest.to_json())
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        "{}",
        json.dumps({**WHOLE, "format": FORMAT + 1}),
        json.dumps({**WHOLE, "files": []}),
        json.dumps({**WHOLE, "files": [FILE, FILE]}),
        json.dumps({**WHOLE, "files": [{**FILE, "size": "1"}]}),
        json.dumps({**WHOLE, "left_out": ["../x"]}),
    ],
)
def test_a_damaged_list_is_one_sentence(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="is damaged, or of a version that this software does not read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["../cases.sqlite", "/etc/passwd", "models/x/cases.sqlite", "cases.sqlite\n"]
)
def test_no_other_file_is_named(tmp_path, name):
    (tmp_path / MANIFEST).write_text(json.dumps({**WHOLE, "files": [{**FILE, "name": name}]}))
    with pytest.raises(ArtifactError, match="names a file that no case store has"):
        read_manifest(tmp_path)


def test_a_folder_without_a_list_is_no_backup(tmp_path):
    with pytest.raises(ConfigError, match="is not a backup"):
        read_manifest(tmp_path)
