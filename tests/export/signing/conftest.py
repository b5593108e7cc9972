"""Two key pairs, a signed bundle, and a repository that is not signed."""

from pathlib import Path

import pytest

from contract.repository import read_published
from contract.signatures import TrustedKeys
from export.signing import sign_bundle
from export.signing_keys import NewKey, SigningKey, make_key
from export.versions import apply_state

from .bundles import no_password, write_bundle


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
