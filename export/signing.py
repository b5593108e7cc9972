"""Sign bundles and published repositories. `contract.signatures` checks the signatures."""

import json
from pathlib import Path

from contract.bundle import MANIFEST, load_bundle
from contract.errors import SignatureError
from contract.files import write_file
from contract.repository import Published, read_marker, verify
from contract.signatures import name_signature
from export.signing_keys import SigningKey
from export.versions import apply_state, lock, remove_leftovers


def sign_bundle(path: Path, key: SigningKey) -> Path:
    """Check every file of a bundle, then sign its manifest. Return the path of the signature.

    Raises:
        ArtifactError: The bundle is damaged, or the disk refused the write.
    """
    bundle, manifest = load_bundle(path, convert=True), path / MANIFEST
    content = manifest.read_bytes()
    if json.loads(content) != bundle.manifest:
        raise SignatureError(f"{manifest} changed while it was checked. Sign it again.")
    write_file(name_signature(manifest), key.sign(MANIFEST, content, bundle.fingerprint))
    return name_signature(manifest)


def sign_repository(repository: Path, key: SigningKey) -> Published:
    """Check every file of a repository against its marker, then sign the marker. Return the content of the repository.

    Raises:
        ConfigError: Another process is publishing into the repository.
        ArtifactError: The repository is damaged, or the disk refused the write.
    """
    read_marker(repository)  # says what is wrong with a path that cannot be locked
    with lock(repository.absolute()):
        state = verify(repository)
        apply_state(state, key)
        remove_leftovers(state)
    return state
