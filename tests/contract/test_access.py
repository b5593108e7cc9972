"""Tokens and roles: the file, who may do what, and that no token is ever written down."""

import json
import logging
import os
import stat
import time

import pytest

from contract.access import Access, Role, append_token, hash_token, make_token, read_tokens
from contract.errors import ConfigError


def bearer(token: str) -> list[tuple[str, str]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


def test_a_higher_role_includes_the_lower_ones(write_tokens):
    path, tokens = write_tokens("metrics", "read", "write", "admin")
    access = Access(path)
    for role, token in tokens.items():
        for needed in Role:
            denial = access.check(bearer(token), needed, "/x")
            assert (denial is None) is (Role[role.upper()] >= needed)
            if denial is not None:
                assert denial.code == "PERMISSION_DENIED"
                assert denial.message == (
                    f"The token of {role} user has the role {role}, and this call needs {needed.label}."
                )


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        bearer("cxr_wrong"),
        bearer(""),
        [("authorization", "Basic {}")],
        [("authorization", "{}")],
        [("authorization-bin", b"Bearer {}")],
        [("x-authorization", "Bearer {}")],
        bearer("x" * 100_000),
        bearer("{}x"),
        bearer("ü"),
    ],
)
def test_no_token_or_a_wrong_one_is_refused(write_tokens, metadata):
    path, tokens = write_tokens("admin")
    sent = [(n, v.replace("{}", tokens["admin"]) if isinstance(v, str) else v) for n, v in metadata]
    denial = Access(path).check(sent, Role.READ, "/x")
    assert denial is not None
    assert denial.code == "UNAUTHENTICATED"
    assert tokens["admin"] not in denial.message


def test_without_a_file_only_admins_need_a_token(tmp_path):
    (tmp_path / "key").write_text("the-admin-key\n")
    access = Access(admin_key=tmp_path / "key")
    assert access.check([], Role.WRITE, "/x") is None
    assert access.check([], Role.ADMIN, "/x").code == "UNAUTHENTICATED"
    assert access.check(bearer("the-admin-key"), Role.ADMIN, "/x") is None
    assert access.check([("triton-grpc-protocol-cxr-admin-key", "the-admin-key")], Role.ADMIN, "/x") is None
    assert Access().check(bearer("the-admin-key"), Role.ADMIN, "/x") is not None


def test_the_admin_key_counts_beside_the_file(write_tokens, tmp_path):
    path, tokens = write_tokens("read")
    (tmp_path / "key").write_text("the-admin-key\n")
    access = Access(path, tmp_path / "key")
    assert access.check(bearer("the-admin-key"), Role.ADMIN, "/x") is None
    both = [*bearer(tokens["read"]), ("triton-grpc-protocol-cxr-admin-key", "the-admin-key")]
    assert access.check(both, Role.ADMIN, "/x") is None


def test_a_removed_line_revokes_its_token_at_once(write_tokens):
    path, tokens = write_tokens("read", "write")
    access = Access(path)
    assert access.check(bearer(tokens["read"]), Role.READ, "/x") is None
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[1])
    assert access.check(bearer(tokens["read"]), Role.READ, "/x").code == "UNAUTHENTICATED"
    assert access.check(bearer(tokens["write"]), Role.READ, "/x") is None
    path.write_text("# nobody\n")
    assert access.check(bearer(tokens["write"]), Role.READ, "/x").code == "UNAUTHENTICATED"


def test_a_damaged_change_keeps_the_tokens_and_is_logged(write_tokens, caplog):
    path, tokens = write_tokens("read")
    access = Access(path)
    path.write_text(f"not JSON {tokens['read']}\n")
    assert access.check(bearer(tokens["read"]), Role.READ, "/x") is None
    assert "Line 1 of the tokens file" in caplog.text
    assert "stay valid" in caplog.text
    assert tokens["read"] not in caplog.text


def test_the_log_names_who_and_never_a_token(write_tokens, caplog):
    path, tokens = write_tokens("read")
    access = Access(path)
    with caplog.at_level(logging.DEBUG):
        access.check(bearer(tokens["read"]), Role.ADMIN, "/inference/LogSettings\nforged line")
    assert "PERMISSION_DENIED, token of read user" in caplog.text
    assert "\nforged" not in caplog.text
    for _ in range(1000):
        access.check(bearer(f"{tokens['read']}x"), Role.READ, "/x")
    assert tokens["read"] not in caplog.text
    assert len(caplog.records) < 10  # a stranger cannot fill the disk


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "Line 1 .*not JSON"),
        (
            '{"name": "a", "role": "root", "sha256": "' + "0" * 64 + '"}',
            "role must be one of metrics, read, write, admin",
        ),
        ('{"name": "a", "role": "read", "sha256": "0"}', "64 hexadecimal digits"),
        ('{"name": "a", "role": "read"}', "name, role and sha256"),
        ('{"name": "a\\n", "role": "read", "sha256": "' + "0" * 64 + '"}', "The name must have"),
        ("[]", "name, role and sha256"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path, line, words):
    path = tmp_path / "tokens"
    path.write_text(line)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=words) as caught:
        read_tokens(path)
    assert "0000" not in str(caught.value)


def test_a_file_that_others_may_change_is_refused(write_tokens):
    path, _ = write_tokens("read")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="Other users may change"):
        Access(path)


def test_two_tokens_of_one_name_are_refused(tmp_path):
    _, entry = make_token("a", "read")
    append_token(tmp_path / "t", entry)
    with pytest.raises(ConfigError, match="has a token of a already"):
        append_token(tmp_path / "t", entry)
    assert len(read_tokens(tmp_path / "t")) == 1
    (tmp_path / "t").write_text(f"{entry.to_line()}\n{entry.to_line()}")
    with pytest.raises(ConfigError, match="same name"):
        read_tokens(tmp_path / "t")


def test_a_token_is_random_and_its_line_holds_only_the_hash():
    (first, line), (second, _) = make_token("a", "write"), make_token("a", "write")
    assert first != second
    assert len(first) >= 40
    assert first not in line.to_line()
    assert json.loads(line.to_line()) == {"name": "a", "role": "write", "sha256": hash_token(first)}


def test_an_unchanged_file_is_not_read_again(write_tokens, monkeypatch):
    path, tokens = write_tokens("read")
    access = Access(path)
    monkeypatch.setattr("contract.access.read_tokens", lambda _: pytest.fail("read again"))
    assert access.check(bearer(tokens["read"]), Role.READ, "/x") is None
    monkeypatch.undo()
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    assert access.check(bearer(tokens["read"]), Role.READ, "/x") is None


def test_an_empty_admin_key_is_refused_and_an_empty_token_is_none(tmp_path):
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        Access(None, tmp_path / "key")


def test_a_file_that_was_opened_to_others_counts_again_after_chmod(tmp_path):
    path = tmp_path / "tokens"
    token, entry = make_token("a", "read")
    append_token(path, entry)
    access = Access(path)
    path.write_text("")
    path.chmod(0o666)
    metadata = [("authorization", f"Bearer {token}")]
    assert access.check(metadata, Role.READ, "m") is None  # the damaged file is not believed
    path.chmod(0o600)
    assert access.check(metadata, Role.READ, "m") is not None
