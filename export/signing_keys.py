"""Secret keys in the format of minisign, and what they sign.

`contract.signatures` checks the signatures. The files are those of the program minisign, which can check and make them
too: `minisign -Vm bundle/manifest.json -p minisign.pub`.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.bundle import Bundle, load_bundle
from contract.errors import ArtifactError, ConfigError
from contract.files import write_file
from contract.signatures import TrustedKeys, import_minisign, write_comment

KEY_FILE: Final = "minisign.key"
PUBLIC_FILE: Final = "minisign.pub"
# The cost of scrypt: 128 MiB for each try of a password (N = 2^17, r = 8).
_OPERATIONS, _MEMORY = 2**22, 2**27


@dataclass(frozen=True)
class NewKey:
    """The files of a new key pair, and the id that signatures name."""

    secret: Path
    public: Path
    key_id: str

    def to_dict(self) -> dict[str, str]:
        """Return JSON-ready values. They hold no key."""
        return {"secret_key": str(self.secret), "public_key": str(self.public), "key_id": self.key_id}


@dataclass(frozen=True, repr=False)
class SigningKey:
    """A secret key that is ready to sign, and its public key."""

    _secret: Any  # minisign.SecretKey
    trust: TrustedKeys

    @classmethod
    def read(cls, path: Path, ask_password: Callable[[], str]) -> "SigningKey":
        """Read a secret key file.

        Args:
            path: The file.
            ask_password: Returns the password. It is called only for a key that has one.

        Raises:
            ConfigError: The file cannot be read or is no secret key, other users may read it, or the password is
                wrong.
        """
        minisign = import_minisign()
        try:
            mode, secret = path.stat().st_mode, minisign.SecretKey.from_file(path)
        except (OSError, ValueError) as error:  # minisign.Error is a ValueError
            reason = error.strerror if isinstance(error, OSError) else "it is no secret key of minisign"
            raise ConfigError(
                f"The secret key {path} cannot be read: {reason}. `cxr sign key` makes one."
            ) from error
        if mode & 0o077:
            raise ConfigError(f"Other users may read the secret key {path}: chmod 600 it.")
        if secret.is_encrypted():
            password = ask_password()
            try:
                secret.decrypt(password)
            except ValueError as error:
                raise ConfigError(f"The password does not open the secret key {path}.") from error
        return cls(secret, TrustedKeys((secret.get_public_key().to_base64().decode(),)))

    @property
    def key_id(self) -> str:
        """The id that signatures name."""
        return self.trust.ids[0]

    def sign(self, name: str, content: bytes, fingerprint: str) -> str:
        """Return the text of a signature file.

        Args:
            name: Name of the signed file.
            content: Its bytes.
            fingerprint: Of the model. It stands in the trusted comment, which is signed too.
        """
        now = str(int(time.time()))
        comment = write_comment({"timestamp": now, "file": name, "fingerprint": fingerprint})
        signature = self._secret.sign(content, trusted_comment=comment)
        return f"{bytes(signature).decode()}\n"

    def accepts(self, bundle: Bundle) -> bool:
        """Whether this key made the signature of a bundle, and the signature is valid."""
        try:
            load_bundle(bundle.path, trust=self.trust)
        except ArtifactError:
            return False
        return True


def make_key(directory: Path, password: str | None) -> NewKey:
    """Make a key pair in a folder, which is created with mode 0700. No file is replaced.

    Args:
        directory: The folder for minisign.key (mode 0600) and minisign.pub.
        password: Encrypts the secret key. None: it is not encrypted.

    Raises:
        ConfigError: A file exists, the password is empty, or the package `minisign` is missing.
        ArtifactError: The disk refused the write.
    """
    minisign = import_minisign()
    if password == "":
        raise ConfigError("The password is empty. Give --no-password for a key without one.")
    secret_path, public_path = directory / KEY_FILE, directory / PUBLIC_FILE
    for path in (secret_path, public_path):
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path} exists already. A key is never replaced: choose another folder.")
    pair = minisign.KeyPair.generate()
    key = TrustedKeys((pair.public_key.to_base64().decode(),)).ids[0]
    pair.public_key.untrusted_comment = f"minisign public key {key}"
    if password is not None:
        pair.secret_key.encrypt(password, opslimit=_OPERATIONS, memlimit=_MEMORY)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(secret_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(bytes(pair.secret_key) + b"\n")
        write_file(public_path, bytes(pair.public_key) + b"\n")
    except OSError as error:
        raise ArtifactError(f"Could not write {error.filename or directory}: {error.strerror}.") from error
    return NewKey(secret_path, public_path, key)
