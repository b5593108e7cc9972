"""Signatures: whoever may write files, but has no key, gets nothing loaded. Each refusal says what is wrong."""

import shutil
import subprocess
from pathlib import Path

import pytest

from contract import bundle as parts
from contract.bundle import (
    MANIFEST,
    MODEL_CARD,
    WEIGHTS,
    Bundle,
    amend_bundle,
    load_bundle,
    seal_bundle,
)
from contract.errors import ArtifactError
from contract.signatures import TrustedKeys, name_signature, read_comment
from export.signing import sign_bundle

from .bundles import check, write_bundle

minisign = pytest.importorskip("minisign")


def replace_part(path: Path, line: int, place: int) -> None:
    """Change one character in a line of a signature file."""
    lines = path.read_text().splitlines()
    old = lines[line][place]
    lines[line] = lines[line][:place] + ("A" if old != "A" else "B") + lines[line][place + 1 :]
    path.write_text("\n".join(lines) + "\n")


def test_a_signed_bundle_loads_with_one_of_the_keys(signed, pairs, trust):
    assert load_bundle(signed, trust=trust).path == signed
    both = TrustedKeys.read([str(pairs[1].public), trust.keys[0], str(pairs[0].public)])
    assert len(both.keys) == 2
    assert check(signed, both) == ""


def test_the_signature_has_the_standard_form_and_tells_the_model(signed, pairs):
    first, second, third, fourth = name_signature(signed / MANIFEST).read_text().splitlines()
    assert first.startswith("untrusted comment: ")
    assert len(second) == 100
    assert len(fourth) == 88
    comment = read_comment(third.removeprefix("trusted comment: "))
    assert comment["fingerprint"] == load_bundle(signed).fingerprint
    assert comment["file"] == MANIFEST
    assert int(comment["timestamp"]) > 1_700_000_000
    signature = minisign.Signature.from_file(name_signature(signed / MANIFEST))
    assert signature.is_prehashed()
    minisign.PublicKey.from_file(pairs[0].public).verify_file(signed / MANIFEST, signature)


@pytest.fixture
def program() -> str:
    found = shutil.which("minisign")
    if found is None:
        pytest.skip("the program minisign is not installed (apt-get install minisign)")
    return found


def test_the_program_minisign_checks_our_signature_and_we_check_its_own(signed, pairs, trust, program):
    checked = subprocess.run(
        [program, "-Vm", signed / MANIFEST, "-p", pairs[0].public], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert f"fingerprint:{load_bundle(signed).fingerprint}" in checked.stdout
    name_signature(signed / MANIFEST).unlink()
    made = subprocess.run(
        [program, "-S", "-W", "-s", pairs[0].secret, "-m", signed / MANIFEST], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert check(signed, trust) == ""
    wrong = subprocess.run(
        [program, "-Vm", signed / MANIFEST, "-p", pairs[1].public], capture_output=True, text=True
    )
    assert wrong.returncode != 0
    for pair in pairs:  # the id as `cxr sign` shows it; minisign prints no zeros in front
        assert pair.key_id.lstrip("0") in wrong.stderr
    assert pairs[0].key_id in check(signed, TrustedKeys.read([str(pairs[1].public)]))


def test_without_a_signature_nothing_loads(signed, trust):
    name_signature(signed / MANIFEST).unlink()
    assert "manifest.json has no signature" in check(signed, trust)
    assert load_bundle(signed)  # no signature is required


def test_swapped_weights_with_right_hashes_are_refused_before_anything_is_read(
    signed, keys, trust, monkeypatch
):
    """The attacker computes all hashes again, as everybody can."""
    signature = name_signature(signed / MANIFEST).read_bytes()
    (signed / WEIGHTS).write_text("other weights")
    seal_bundle(signed, {})
    assert load_bundle(signed)  # hashes alone do not notice
    assert "has no signature" in check(signed, trust)
    name_signature(signed / MANIFEST).write_bytes(signature)

    def read_nothing(*_: object) -> str:
        raise AssertionError("a file was read before the signature was checked")

    monkeypatch.setattr(parts, "compute_sha256", read_nothing)
    assert "is the signature of model" in check(signed, trust)
    name_signature(signed / MANIFEST).write_text(
        keys[1].sign(MANIFEST, (signed / MANIFEST).read_bytes(), "f" * 64)
    )
    assert "was made with key" in check(signed, trust)


def test_files_outside_the_fingerprint_are_covered_too(signed, trust):
    """The card and the metrics decide no answer, but people trust them."""
    signature = name_signature(signed / MANIFEST).read_bytes()
    before = load_bundle(signed).fingerprint
    (signed / MODEL_CARD).write_text("AUROC 0.99")
    seal_bundle(signed, {})
    name_signature(signed / MANIFEST).write_bytes(signature)
    assert load_bundle(signed).fingerprint == before
    assert "manifest.json was changed after it was signed" in check(signed, trust)


def test_a_flipped_bit_after_the_signature_is_found_by_its_hash(signed, trust):
    (signed / WEIGHTS).write_text("Weights")
    with pytest.raises(ArtifactError, match="was changed after the bundle was written"):
        load_bundle(signed, trust=trust)


@pytest.mark.parametrize(
    ("line", "place"), [(1, 40), (2, 25), (3, 10)], ids=["signature", "comment", "global"]
)
def test_a_damaged_signature_is_called_so(line, place, signed, trust):
    replace_part(name_signature(signed / MANIFEST), line, place)
    assert "damaged or forged" in check(signed, trust)


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", b"\xff" * 400, b"a\nb\nc\nd\n", b"\n" * 100_000],
    ids=lambda value: str(value[:9]),
)
def test_what_is_no_signature_is_called_damaged(content, signed, trust):
    name_signature(signed / MANIFEST).write_bytes(content)
    assert "manifest.json.minisig is damaged (" in check(signed, trust)


def test_a_folder_in_place_of_the_signature_is_refused(signed, trust):
    name_signature(signed / MANIFEST).unlink()
    name_signature(signed / MANIFEST).mkdir()
    assert "is damaged (Is a directory)" in check(signed, trust)


def test_the_signature_of_another_bundle_names_both(signed, tmp_path, keys, trust):
    other = write_bundle(tmp_path / "other", "other weights")
    shutil.copy(sign_bundle(other.path, keys[0]), signed)
    said = check(signed, trust)
    assert f"is the signature of model {other.fingerprint[:12]}" in said
    assert f"is of model {load_bundle(signed).fingerprint[:12]}" in said


def test_amending_a_bundle_removes_its_signature(signed):
    with amend_bundle(load_bundle(signed), changed=(MODEL_CARD,)) as scratch:
        (scratch / MODEL_CARD).write_text("new")
    bundle = load_bundle(signed)
    assert not bundle.is_signed
    assert not any(name.endswith(".minisig") for name in bundle.manifest["files"])


def test_a_damaged_bundle_is_not_signed(signed, keys):
    name_signature(signed / MANIFEST).unlink()
    (signed / WEIGHTS).write_text("other weights")
    with pytest.raises(ArtifactError, match="was changed after the bundle was written"):
        sign_bundle(signed, keys[0])
    assert not name_signature(signed / MANIFEST).exists()


def test_a_report_of_the_export_does_not_end_the_signature_of_another(signed, keys, trust, monkeypatch):
    from export import pipeline
    from export.gates import precision_report

    def write(bundle: Bundle, _: object) -> Path:
        with amend_bundle(bundle) as scratch:
            (scratch / "report.md").write_text("new")
        return bundle.path / "report.md"

    monkeypatch.setattr(precision_report, "write_report", write)
    assert pipeline._write_report(load_bundle(signed), None, None) is None
    assert pipeline._write_report(load_bundle(signed), None, keys[1]) is None
    assert check(signed, trust) == ""
    assert pipeline._write_report(load_bundle(signed), None, keys[0]) == signed / "report.md"
    assert check(signed, trust) == ""
    assert "report.md" in load_bundle(signed).manifest["files"]
