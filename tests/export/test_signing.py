"""Signatures: whoever may write files, but has no key, gets nothing loaded. Each refusal says what is wrong."""

import json
import os
import shutil
import stat
import subprocess
import sys
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
    write_directory,
    write_labels,
)
from contract.decisions import Decisions, ServedLabel
from contract.errors import ArtifactError, ConfigError, SignatureError
from contract.labels import LABELS
from contract.repository import MARKER, SIGNATURE, read_published, verify
from contract.repository import main as check_repository
from contract.signatures import ENVIRONMENT, TrustedKeys, name_signature, read_comment
from export.signing import NewKey, SigningKey, make_key, sign_bundle, sign_repository
from export.versions import apply_state, promote, restore, retire, rollback, settle, withdraw

minisign = pytest.importorskip("minisign")

ROOT = Path(__file__).resolve().parents[2]


def no_password() -> str:
    raise AssertionError("this key has no password")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[NewKey]:
    """Two key pairs: of the owner, and of the attacker."""
    return [make_key(tmp_path_factory.mktemp("keys"), None) for _ in range(2)]


@pytest.fixture(scope="module")
def keys(pairs) -> list[SigningKey]:
    return [SigningKey.read(pair.secret, no_password) for pair in pairs]


@pytest.fixture(scope="module")
def trust(pairs) -> TrustedKeys:
    return TrustedKeys.read([str(pairs[0].public)])


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


@pytest.fixture
def signed(tmp_path, keys) -> Path:
    """A signed bundle."""
    bundle = write_bundle(tmp_path / "bundle", "weights")
    sign_bundle(bundle.path, keys[0])
    return bundle.path


@pytest.fixture
def repository(tmp_path, mark_published) -> Path:
    """A repository of two versions that is not signed. Version 1 answers."""
    root = tmp_path / "repository"
    for number in (1, 2):
        for name, platform in (("graph", ""), ("predict", 'platform: "ensemble"')):
            version = root / name / str(number)
            version.mkdir(parents=True)
            text = f'name: "{name}" {platform} version_policy {{ specific {{ versions: [1] }} }}\n'
            (version / "config.pbtxt").write_text(text)
        (root / "graph" / str(number) / "model.onnx").write_text(f"weights {number}")
    mark_published(root, "1" * 64, second="2" * 64)
    state = read_published(root)
    apply_state(type(state)(root, 1, state.versions, state.details))
    return root


def check(path: Path, trust: TrustedKeys) -> str:
    """Return why a bundle is refused; "" if it is not."""
    try:
        load_bundle(path, trust=trust)
    except SignatureError as error:
        return str(error)
    return ""


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
    assert pairs[0].key_id in wrong.stderr  # the id as `cxr sign` shows it
    assert pairs[1].key_id in wrong.stderr
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


def test_another_key_is_named_with_the_trusted_one(signed, pairs):
    said = check(signed, TrustedKeys.read([str(pairs[1].public)]))
    assert f"was made with key {pairs[0].key_id}" in said
    assert f"trusts key {pairs[1].key_id}" in said


def test_a_key_that_borrows_the_id_of_a_trusted_one_is_no_use(signed, pairs, keys, trust):
    path = name_signature(signed / MANIFEST)
    forged = keys[1].sign(MANIFEST, (signed / MANIFEST).read_bytes(), load_bundle(signed).fingerprint)
    signature = minisign.Signature.from_bytes(forged.encode())
    object.__setattr__(signature, "_key_id", bytes.fromhex(pairs[0].key_id)[::-1])
    path.write_bytes(bytes(signature) + b"\n")
    assert f"names key {pairs[0].key_id} but was not made with it" in check(signed, trust)


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


@pytest.mark.parametrize("value", ["nowhere.pub", "RWQ", "A" * 5000, ".", "\x00"])
def test_an_unreadable_public_key_is_a_wrong_setting(value):
    with pytest.raises(ConfigError, match=r"public key .* cannot be read"):
        TrustedKeys.read([value])


def test_the_secret_key_is_no_public_key(pairs):
    with pytest.raises(ConfigError, match=r"minisign.key .*it is no public key.*minisign.pub") as caught:
        TrustedKeys.read([str(pairs[0].secret)])
    assert pairs[0].secret.read_text().splitlines()[1] not in str(caught.value)


def test_the_environment_counts_unless_an_option_is_given(pairs, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert TrustedKeys.find() is None
    monkeypatch.setenv(ENVIRONMENT, "")
    assert TrustedKeys.find() is None
    public = [pair.public.read_text().splitlines()[1] for pair in pairs]
    monkeypatch.setenv(ENVIRONMENT, " ".join(public))
    assert TrustedKeys.find().keys == tuple(public)
    assert TrustedKeys.find([public[1]]).keys == (public[1],)
    monkeypatch.setenv(ENVIRONMENT, " ")  # set, but to no key: it must not mean that anything is accepted
    with pytest.raises(ConfigError, match="holds no public key"):
        TrustedKeys.find()


def test_a_key_pair_is_protected_and_never_replaced(tmp_path):
    made = make_key(tmp_path / "new", "open sesame")
    assert stat.S_IMODE(made.secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.secret.parent.stat().st_mode) == 0o700
    before = made.secret.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        make_key(tmp_path / "new", None)
    assert made.secret.read_bytes() == before
    with pytest.raises(ConfigError, match="password does not open"):
        SigningKey.read(made.secret, lambda: "open barley")
    opened = SigningKey.read(made.secret, lambda: "open sesame")
    assert opened.key_id == made.key_id
    assert opened.trust == TrustedKeys.read([str(made.public)])
    assert "key" not in repr(opened).lower().replace("signingkey", "")
    made.secret.chmod(0o640)
    with pytest.raises(ConfigError, match="Other users may read"):
        SigningKey.read(made.secret, no_password)
    with pytest.raises(ConfigError, match="password is empty"):
        make_key(tmp_path / "other", "")
    with pytest.raises(ConfigError, match="no secret key"):
        SigningKey.read(made.public, no_password)


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


def test_each_change_of_a_signed_repository_is_signed_again(repository, keys, trust):
    sign_repository(repository, keys[0])
    assert verify(repository, trust).version == 1
    promote(repository, 2, key=keys[0])
    assert verify(repository, trust).version == 2
    rollback(repository, key=keys[0])
    assert verify(repository, trust).version == 1
    settle(repository)  # as `cxr serve` does; without a key
    assert verify(repository, trust).version == 1

    def fail() -> None:
        assert list(verify(repository, trust).versions) == [1]
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        retire(repository, tell=fail, key=keys[0])
    assert list(verify(repository, trust).versions) == [1, 2]
    withdraw(repository, 2, key=keys[0])
    assert list(verify(repository, trust).versions) == [1]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: promote(path, 2),
        lambda path: rollback(path, 2),
        retire,
        lambda path: withdraw(path, 1),
    ],
)
def test_a_signed_repository_does_not_change_without_a_key(change, repository, keys, trust):
    sign_repository(repository, keys[0])
    files = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is signed, and a change would make its signature invalid"):
        change(repository)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == files
    assert verify(repository, trust)


def test_a_marker_with_right_hashes_of_other_weights_is_refused(repository, keys, trust, mark_published):
    sign_repository(repository, keys[0])
    signature = (repository / SIGNATURE).read_bytes()
    (repository / "graph" / "1" / "model.onnx").write_text("other weights")
    with pytest.raises(ArtifactError, match="differs from the published file"):
        verify(repository, trust)
    mark_published(repository, "1" * 64, second="2" * 64)
    assert verify(repository)  # hashes alone do not notice
    (repository / SIGNATURE).write_bytes(signature)
    with pytest.raises(SignatureError, match=r"is the signature of model 1{12}, but .* is of model 2{12}"):
        verify(repository, trust)
    (repository / SIGNATURE).unlink()
    with pytest.raises(SignatureError, match="has no signature"):
        verify(repository, trust)


def test_the_signature_of_a_bundle_is_none_of_a_repository(repository, signed, trust):
    shutil.copy(name_signature(signed / MANIFEST), repository / SIGNATURE)
    with pytest.raises(SignatureError, match="is the signature of model"):
        verify(repository, trust)


def test_a_damaged_repository_is_not_signed(repository, keys):
    (repository / "graph" / "2" / "model.onnx").write_text("other weights")
    with pytest.raises(ArtifactError, match="differs from the published file"):
        sign_repository(repository, keys[0])
    assert not (repository / SIGNATURE).exists()


def test_an_interrupted_change_leaves_a_repository_that_is_refused(repository, keys, trust, monkeypatch):
    """The process is killed between the marker and its signature."""
    sign_repository(repository, keys[0])
    signature = (repository / SIGNATURE).read_bytes()
    promote(repository, 2, key=keys[0])
    (repository / SIGNATURE).write_bytes(signature)
    with pytest.raises(SignatureError, match=r"is the signature of model 1{12}"):
        verify(repository, trust)
    sign_repository(repository, keys[0])
    assert verify(repository, trust).version == 2


def test_leftovers_are_removed_but_not_the_signature(repository, keys, trust):
    sign_repository(repository, keys[0])
    (repository / f"{MARKER}.old").write_text("left")
    restore(repository)
    assert not (repository / f"{MARKER}.old").exists()
    assert verify(repository, trust)


def test_the_check_of_the_container_reads_the_environment(repository, keys, trust, monkeypatch, capsys):
    monkeypatch.setenv(ENVIRONMENT, trust.keys[0])
    assert check_repository([str(repository)]) == 3
    assert "has no signature" in capsys.readouterr().err
    sign_repository(repository, keys[0])
    assert check_repository([str(repository)]) == 0
    other = keys[1].trust.keys[0]
    assert check_repository([str(repository), "--require-signature", other]) == 3
    monkeypatch.setenv(ENVIRONMENT, "nothing")
    assert check_repository([str(repository)]) == 2


def start_image(repository: Path, place: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point of the image. Its tritonserver notes that it was started."""
    (place / "tritonserver").write_text(f"#!/bin/sh\ntouch {place}/started\n")
    (place / "tritonserver").chmod(0o755)
    environment = {**os.environ, "CXR_MODELS": str(repository), "PYTHONPATH": str(ROOT), **settings}
    # The script asks for python3, which must be the one with this project's packages.
    environment["PATH"] = f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ROOT / "docker" / "serve_triton.sh"
    return subprocess.run([script], env=environment, capture_output=True, text=True, cwd=place, check=False)


def test_the_image_starts_no_triton_without_the_signature(repository, tmp_path, keys, trust):
    key = {ENVIRONMENT: trust.keys[0]}
    ended = start_image(repository, tmp_path, **key)
    assert (ended.returncode, "has no signature" in ended.stderr) == (3, True)
    sign_repository(repository, keys[0])
    ended = start_image(repository, tmp_path, **key, CXR_ADMIN_KEY="k")
    assert (ended.returncode, "exclude each other" in ended.stderr) == (2, True)
    assert not (tmp_path / "started").exists()
    assert start_image(repository, tmp_path, **key).returncode == 0
    assert (tmp_path / "started").exists()


def test_a_new_repository_and_a_new_version_are_signed(bundle, tmp_path, keys, trust):
    onnx = pytest.importorskip("onnx")
    from contract.tensors import GRAPHS
    from export.publish import check_fits, publish

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [value]))
    onnx.helper.set_model_props(graph, {"fingerprint": bundle.fingerprint})
    onnx.save(graph, tmp_path / "graph.onnx")
    graphs = dict.fromkeys(GRAPHS, tmp_path / "graph.onnx")
    made = publish(bundle, graphs, tmp_path / "repository", key=keys[0])
    assert verify(made, trust).version == 1
    with pytest.raises(ConfigError, match="is signed"):
        publish(bundle, graphs, made)
    from export.configs import Deployment

    with pytest.raises(ConfigError, match="is signed"):
        check_fits(bundle, made, Deployment())
    publish(bundle, graphs, made, key=keys[0])
    assert verify(made, trust).version == 2
    publish(bundle, graphs, made, replace=True)  # another repository, which nobody signed
    assert not (made / SIGNATURE).exists()
    assert json.loads((made / MARKER).read_text())["version"] == 1
