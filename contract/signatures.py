"""Signatures of a bundle and of a published repository, in the format of minisign (Ed25519).

    manifest.json.minisig      beside the manifest of a bundle; the manifest holds the SHA-256 of every file
    .published.json.minisig    beside the marker of a repository, which does the same

So one signature covers everything. It is checked on the bytes that are parsed afterwards, before anything else is
read. A hash shows that a file was damaged. Only a signature shows who wrote it, because everybody can compute hashes.

The package `minisign` (extra `sign`) is imported only when a signature is required or made.
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contract.errors import ConfigError, SignatureError

if TYPE_CHECKING:
    from minisign import PublicKey, Signature

ENVIRONMENT: Final = "CXR_REQUIRE_SIGNATURE"
OPTION: Final = "--require-signature"
SUFFIX: Final = ".minisig"
_LARGEST: Final = 2**16  # bytes of a signature or a public key that are read; a real one has some hundred
# Bytes of a key or a signature that hold the id of the key, after two bytes for the algorithm.
_ID: Final = slice(2, 10)
_SHORT: Final = 12  # digits of a fingerprint in a message


def name_signature(path: Path) -> Path:
    """Return the path of the signature of a file."""
    return path.with_name(f"{path.name}{SUFFIX}")


def import_minisign() -> Any:
    """Return the package `minisign`. Raise ConfigError if it is not installed."""
    try:
        import minisign
    except ImportError as error:
        raise ConfigError("Signatures need the 'sign' extra: pip install 'cxr-serving[sign]'.") from error
    return minisign


def format_key_id(raw: bytes) -> str:
    """Return the id of a key (8 bytes) as minisign shows it: 16 hexadecimal digits."""
    return raw[::-1].hex().upper()


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose signatures are accepted, each as one line of base64. There is at least one."""

    keys: tuple[str, ...]

    @classmethod
    def read(cls, values: Sequence[str]) -> "TrustedKeys":
        """Read public keys.

        Args:
            values: Each is the path of a public key file of minisign, or the key itself in base64.

        Raises:
            ConfigError: There is no key, one cannot be read, or the package `minisign` is missing.
        """
        if not values:
            raise ConfigError(
                f"{OPTION} ({ENVIRONMENT}) holds no public key. Give the file of one, or its base64 text."
            )
        return cls(tuple(dict.fromkeys(_read_key(value).to_base64().decode() for value in values)))

    @classmethod
    def find(cls, values: Sequence[str] | None = None) -> "TrustedKeys | None":
        """Read the keys of the option, else of the environment; None if neither is set. Spaces separate the latter.

        Raises:
            ConfigError: As in `read`.
        """
        stated = os.environ.get(ENVIRONMENT, "")
        if values:
            return cls.read(values)
        return cls.read(stated.split()) if stated else None

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the keys, as minisign shows them."""
        return tuple(format_key_id(base64.b64decode(key)[_ID]) for key in self.keys)

    def to_arguments(self) -> list[str]:
        """Return the options for the command line of a server."""
        return [word for key in self.keys for word in (OPTION, key)]

    def check(self, path: Path, content: bytes) -> None:
        """Check the signature of a file.

        Args:
            path: The file. Its signature lies beside it.
            content: What was read from the file.

        Raises:
            SignatureError: There is no signature, it is damaged, it is of another key or another model, or the file
                was changed after it was signed.
        """
        minisign = import_minisign()
        beside = name_signature(path)
        signature = _read_signature(beside, path)
        signer = format_key_id(base64.b64decode(bytes(signature).splitlines()[1])[_ID])
        if signer not in self.ids:
            raise SignatureError(
                f"{beside} was made with key {signer}, but {OPTION} trusts {_join(self.ids)}. Get the model from the "
                f"owner of a trusted key, or give the public key of {signer} too if you trust it."
            )
        chosen = [key for key, number in zip(self.keys, self.ids, strict=True) if number == signer]
        for key in chosen:
            try:
                minisign.PublicKey.from_base64(key).verify(content, signature)
            except minisign.VerifyError:
                continue
            return
        raise _explain(path, content, signature, signer, chosen)


def _read_key(value: str) -> "PublicKey":
    """Read one public key: a file, or the key itself."""
    minisign = import_minisign()
    try:
        if not Path(value).is_file():
            return minisign.PublicKey.from_base64(value.strip())
        lines = _read_start(Path(value)).split(b"\n")
        return minisign.PublicKey.from_base64(next(line for line in reversed(lines) if line.strip()).strip())
    except (OSError, ValueError, StopIteration) as error:  # minisign.Error is a ValueError
        reason = (
            (error.strerror or "it cannot be opened") if isinstance(error, OSError) else "it is no public key"
        )
        raise ConfigError(
            f"The public key {value} ({OPTION}) cannot be read: {reason}. Give the file minisign.pub that `cxr sign "
            "key` makes, or its second line."
        ) from error


def _read_signature(path: Path, signed: Path) -> "Signature":
    minisign = import_minisign()
    try:
        return minisign.Signature.from_bytes(_read_start(path))
    except FileNotFoundError as error:
        raise SignatureError(
            f"{signed} has no signature, but {OPTION} asks for one: {path} is missing. Copy it from where the model "
            "comes from, or sign with `cxr sign`."
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SignatureError(
            f"The signature {path} is damaged ({reason}). Copy it again, or sign again with `cxr sign`."
        ) from error


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)


def _explain(
    path: Path, content: bytes, signature: "Signature", signer: str, keys: Sequence[str]
) -> SignatureError:
    """Return why a signature that names a trusted key is not valid. The file is already refused."""
    beside = name_signature(path)
    if not any(_is_whole(signature, key) for key in keys):
        return SignatureError(
            f"The signature {beside} names key {signer} but was not made with it, so it is damaged or forged. Copy it "
            "again from where the model comes from, or sign again with `cxr sign`."
        )
    signed, found = read_comment(signature.trusted_comment).get("fingerprint"), _read_fingerprint(content)
    if signed and found and signed != found:
        return SignatureError(
            f"{beside} is the signature of model {signed[:_SHORT]}, but {path} is of model {found[:_SHORT]}. Copy the "
            "signature of this model, or sign again with `cxr sign`."
        )
    return SignatureError(
        f"{path} was changed after it was signed with key {signer}. Copy the signed file again, or check the change "
        "and sign again with `cxr sign`."
    )


def _is_whole(signature: "Signature", key: str) -> bool:
    """Whether the trusted comment, and the signature before it, come from the owner of the key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    lines = bytes(signature).splitlines()
    signed = base64.b64decode(lines[1])[_ID.stop :] + signature.trusted_comment.encode()
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key)[_ID.stop :]).verify(
            base64.b64decode(lines[3]), signed
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def write_comment(content: Mapping[str, object]) -> str:
    """Return a trusted comment: pairs of name and value, as minisign writes its own."""
    return "\t".join(f"{name}:{value}" for name, value in content.items())


def read_comment(text: str) -> dict[str, str]:
    """Return the pairs of name and value in a trusted comment. Other words are ignored."""
    parts = (word.partition(":") for word in text.split("\t"))
    return {name: value for name, colon, value in parts if colon}


def _read_fingerprint(content: bytes) -> str | None:
    try:
        return str(json.loads(content)["fingerprint"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _join(ids: Sequence[str]) -> str:
    return f"key {ids[0]}" if len(ids) == 1 else f"the keys {', '.join(ids)}"
