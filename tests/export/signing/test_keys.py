"""A key pair is protected, and only the trusted key counts."""

import stat

import pytest

from contract.bundle import MANIFEST, load_bundle
from contract.errors import ConfigError
from contract.signatures import ENVIRONMENT, TrustedKeys, name_signature
from export.signing_keys import SigningKey, make_key

from .bundles import check, no_password

minisign = pytest.importorskip("minisign")


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
    assert repr(opened).startswith("<export.signing_keys.SigningKey object at")
    made.secret.chmod(0o640)
    with pytest.raises(ConfigError, match="Other users may read"):
        SigningKey.read(made.secret, no_password)
    with pytest.raises(ConfigError, match="password is empty"):
        make_key(tmp_path / "other", "")
    with pytest.raises(ConfigError, match="no secret key"):
        SigningKey.read(made.public, no_password)
