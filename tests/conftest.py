"""What tests of several folders share: the real Open-i files, small DICOM files, small sealed bundles."""

import gc
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from contract.bundle import Bundle
    from training.config.settings import ModelConfig

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see cli/app.py
# On a busy machine an example takes as long as it takes.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# What the tokenizer of the smallest model learns.
SMALL_TEXTS = (
    "FINDINGS: effusion of grade 0001 is seen.",
    "fracture granuloma emphysema pneumonia scoliosis 0 2 3 4 5",
    "The heart is enlarged. Lungs are clear. There is a small left effusion.",
    "the heart is enlarged and there is a left effusion",
)
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --made-once."""
    parser.addoption(
        "--made-once",
        metavar="DIRECTORY",
        help="Keep what `make_once` makes here, and take from here what an earlier run of the same code made.",
    )


def pytest_configure() -> None:
    """Let the garbage collector look less often: it took a seventh of what a test of models imports."""
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from modules and tests: they stay to the end, and it took a quarter of this."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def _require_data(name: str, what: str) -> Path:
    """Return a directory of real files; where CI=true they must be there, elsewhere the test is skipped."""
    directory = DATA / name
    if not directory.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the real {what} are missing: {directory}")
        pytest.skip(f"the real {what} are not at {directory}")
    return directory


@pytest.fixture(scope="session")
def openi_directory() -> Path:
    """Directory of the real Open-i files; see `_require_data`."""
    return _require_data("openi", "Open-i files")


@pytest.fixture(scope="session")
def nih14_directory() -> Path:
    """Directory of real ChestX-ray14 files; see `_require_data`."""
    return _require_data("nih14", "ChestX-ray14 files")


@pytest.fixture(scope="session")
def kermany_archive() -> Path:
    """The paediatric radiographs as one archive."""
    return _require_data("kermany", "paediatric radiographs") / "chest_xray_224.tar"


@pytest.fixture(scope="session")
def real_radiographs() -> tuple[Path, ...]:
    """Real frontal and lateral radiographs of ChestX-ray14 and Open-i, as PNG and JPEG; see `_require_data`."""
    nih, nih14 = (_require_data(name, "ChestX-ray14 files") for name in ("nih", "nih14"))
    openi = _require_data("openi", "Open-i files")
    found = (*nih.glob("*.png"), *openi.glob("png/*.png"), *nih14.glob("images/*.jpg"))
    assert len(found) == 677
    return found


@pytest.fixture(scope="session")
def children_archive() -> Path:
    """The archive of 5,840 radiographs of children, Kermany et al.; see `_require_data`."""
    return _require_data("kermany", "radiographs of Kermany et al.") / "chest_xray_224.tar"


@pytest.fixture(scope="session")
def install_aside() -> "Callable[[str, str], tuple[Path, str]]":
    """A function that installs one version of a package beside this environment; see `_install_aside`."""
    return _install_aside


def _install_aside(package: str, version: str) -> tuple[Path, str]:
    """Return a directory for PYTHONPATH with one package, without what it needs, and the version that it has.

    That is the nearest version where the registry has another one for this Python. The directory is kept in the user's
    cache. Where nothing can be downloaded the test is skipped, and where CI=true it fails.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr-serving"
    directory = cache / f"{package}-{version}-{sys.implementation.cache_tag}"
    if directory.is_dir():
        return directory, version
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        options = ["--quiet", "--retries=2", "--no-deps", "--only-binary=:all:"]
        command, made = [sys.executable, "-m", "pip", "install", *options], Path(scratch) / "made"
        result = subprocess.run(
            [*command, "--target", made, f"{package}=={version}"], capture_output=True, text=True
        )
        if result.returncode == 0:
            if not directory.is_dir():  # another run may have been faster
                made.rename(directory)
            return directory, version
    listed = re.search(r"from versions: ([0-9][^)]*)\)", result.stderr)
    if listed and version not in (known := listed.group(1).split(", ")):
        return _install_aside(package, _find_nearest(version, known))
    message = f"{package} {version} cannot be downloaded: {result.stderr.strip()[-300:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def _find_nearest(version: str, known: Sequence[str]) -> str:
    """Return the oldest known version after the wanted one, else the newest."""

    def order(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    ordered = sorted((x for x in known if re.fullmatch(r"[0-9.]+", x)), key=order)
    return next((x for x in ordered if order(x) > order(version)), ordered[-1])


@pytest.fixture(scope="session")
def make_once(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> "Callable[[str, Callable[[Path], object]], Path]":
    """A function that fills a directory once for all processes of this run: its name, what fills it -> the directory.

    Whoever asks later finds the files that the first one made, and changes none of them. With --made-once later runs
    find them too.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # a worker has a directory of its own below that of the run
    root = Path(pytestconfig.getoption("--made-once") or root / "made-once").absolute()
    root.mkdir(parents=True, exist_ok=True)

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        place, whole = root / name, root / f"{name}.whole"
        with FileLock(root / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(place, ignore_errors=True)  # what failed
                place.mkdir()
                fill(place)
                whole.touch()
        return place

    return make


@pytest.fixture(scope="session")
def mark_published() -> "Callable[..., None]":
    """A function that writes the marker for a model repository that a test put together; see `_mark_published`."""
    return _mark_published


def _mark_published(
    repository: Path, fingerprint: str, *, second: str | None = None, rate_limited: bool = False
) -> None:
    """State that all files are as published: version 1 of `fingerprint`, and perhaps a second, which then answers."""
    from contract.repository import CONFIG_NAME, MARKER, Published, hash_version, render_marker

    versions = {1: fingerprint} | ({2: second} if second else {})
    entries = {
        number: {
            "fingerprint": value,
            "rate_limited": rate_limited,
            "files": hash_version(repository, number),
        }
        for number, value in versions.items()
    }
    configs = {path.parent.name: path.read_text() for path in repository.glob(f"*/{CONFIG_NAME}")}
    state = Published(repository, max(versions), entries, {})
    (repository / MARKER).write_text(render_marker(state, configs))


@pytest.fixture(scope="session")
def chest_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One phantom radiograph as DICOM: `frontal`, and relabelled as `lateral`, of a `hand`, with 3 `frames`."""
    import pydicom

    from training.phantom import draw_dataset

    root = tmp_path_factory.mktemp("chest") / "phantom"
    draw_dataset(root, studies=2, seed=0, scale=0.05, workers=1)
    data = sorted(root.rglob("*.dcm"))[0].read_bytes()

    def relabel(**elements: object) -> bytes:
        dataset = pydicom.dcmread(io.BytesIO(data))
        # What else tells the view goes, so that View Position does.
        told = {"PatientOrientation": "", "AcquisitionDeviceProcessingCode": "", "PostprocessingFunction": ""}
        elements = {"ViewPosition": "PA", "ImageLaterality": "U", **told, **elements}
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.PixelData = dataset.PixelData * int(elements.get("NumberOfFrames", 1))
        file = io.BytesIO()
        dataset.save_as(file)
        return file.getvalue()

    return {
        "frontal": relabel(),
        "lateral": relabel(ViewPosition="LL", ImageLaterality="L"),
        "hand": relabel(BodyPartExamined="HAND"),
        "frames": relabel(NumberOfFrames=3),
    }


@pytest.fixture(scope="session")
def small_config() -> "ModelConfig":
    """The smallest model that has every part: 56 pixels a side, 49 patches, a vocabulary of 120."""
    from training.config.settings import ModelConfig

    return ModelConfig(
        image_size=56,
        image_stem="patch",
        image_patch=4,
        image_width=16,
        image_depths=(2, 1),
        image_heads=(2, 2),
        vocabulary_size=120,
        text_width=32,
        text_layers=1,
        text_heads=2,
        text_feedforward=64,
        text_positions=64,
        width=32,
        embedding_size=16,
        fusion_layers=1,
        fusion_heads=2,
        adapter_rank=4,
    )


@pytest.fixture(scope="session")
def write_bundle() -> "Callable[..., Bundle]":
    """A function that writes a sealed bundle with random weights and loads it; see `_write_bundle`."""
    pytest.importorskip("torch")
    return _write_bundle


@pytest.fixture(scope="session")
def make_model(
    write_bundle: "Callable[..., Bundle]", small_config: "ModelConfig", make_once: Callable[..., Path]
) -> "Callable[[int], tuple[Bundle, dict[str, Path]]]":
    """A function: seed -> a bundle of the smallest model with random weights, and its graphs, made once for all tests.

    It has a lexical part, 2,000 token ids, and reads 512 tokens. The graphs of seed 1 are exported. An export takes
    long, so those of other seeds are copies of them with other weights: they answer otherwise, but not as the PyTorch
    model of their bundle does.
    """
    pytest.importorskip("onnxscript")
    from contract.bundle import load_bundle
    from contract.labels import LABELS
    from contract.tensors import GRAPHS
    from export.graphs.from_torch import export_graphs

    config = replace(small_config, text_positions=512, lexical_buckets=4096, vocabulary_size=2000)

    def make(seed: int) -> "tuple[Bundle, dict[str, Path]]":
        def fill(place: Path) -> None:
            given = {"seed": seed, "texts": SMALL_TEXTS, "thresholds": [0.4] * len(LABELS), "longest": 512}
            bundle = write_bundle(place / "bundle", config, **given)
            if seed == 1:
                export_graphs(bundle, place / "graphs")
            else:
                _vary_graphs(make(1)[1], place / "graphs", bundle, seed)

        place = make_once(f"model-{seed}", fill)
        return load_bundle(place / "bundle"), {name: place / "graphs" / f"{name}.onnx" for name in GRAPHS}

    return make


def _vary_graphs(graphs: dict[str, Path], out: Path, bundle: "Bundle", seed: int) -> None:
    """Copy graphs with each weight of two or more axes changed by a fifth at random, as those of another bundle."""
    import numpy as np
    import onnx

    from contract.tensors import MODELS
    from export.graphs.checks import read_sizes, seal_graph

    generator = np.random.default_rng(seed)
    out.mkdir()
    for name, path in graphs.items():
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
                weights = onnx.numpy_helper.to_array(tensor)
                factors = 1 + 0.2 * generator.standard_normal(weights.shape)
                changed = onnx.numpy_helper.from_array((weights * factors).astype(np.float32), tensor.name)
                tensor.CopyFrom(changed)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**properties, "fingerprint": bundle.fingerprint})
        onnx.save(model, out / f"{name}.onnx")
        seal_graph(out / f"{name}.onnx", MODELS[name], read_sizes(bundle), bundle.fingerprint)


def _write_bundle(
    directory: Path,
    config: "ModelConfig",
    *,
    seed: int,
    texts: Sequence[str],
    thresholds: Sequence[float],
    biases: Sequence[float] = (0.0, 0.0, 0.0),
    longest: int = 256,
) -> "Bundle":
    """Write a bundle that reads findings; its tokenizer learns `texts`, `biases` calibrate study, image, text.

    It reads as many tokens as it has positions, at most `longest`.

    A lexical part holds random tables too, and the view head and the mark of further views random weights.
    """
    import torch
    from safetensors.torch import save_file

    from contract import bundle as parts
    from contract.decisions import Decisions, ServedLabel
    from contract.labels import LABELS
    from contract.report.label_words import MASK
    from contract.report.text import SPECIAL_TOKENS, train_tokenizer
    from training.model.model import CxrModel

    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    model = CxrModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # wider than at initialisation, so that the inputs matter
            parameter.mul_(1.5)
        for kind, bias in zip(("study", "image", "text"), biases, strict=True):
            getattr(model.fusion, f"bias_{kind}").fill_(bias)
        if (lexical := model.fusion.lexical) is not None:
            for table in (lexical.unigrams, lexical.bigrams, lexical.bias):
                table.copy_(torch.randn(table.shape))
                table[..., -1] += 4  # the squares of idf are at least 1
            lexical.mask_id.fill_(SPECIAL_TOKENS.index(MASK))
        model.fusion.lateral.weight.copy_(
            torch.randn(1, config.width) * 0.05
        )  # it tells images apart, never surely
        model.fusion.view.copy_(torch.randn(config.width) * 0.5)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, directory / parts.WEIGHTS)
    length = min(config.text_positions, longest)
    settings = {
        "model": asdict(config),
        "sizes": model.sizes,
        "text_mode": "findings",
        "max_length": length,
    }
    parts.write_json(directory / parts.CONFIG, settings)
    size = min(config.vocabulary_size, 300)
    train_tokenizer([*texts] * 3, directory / parts.TOKENIZER, vocab_size=size)
    named = zip(LABELS, thresholds, strict=True)
    labels = tuple(ServedLabel(x.key, x.name, limit) for x, limit in named)
    parts.write_labels(directory, Decisions.repeat(labels))
    for name in (parts.METRICS, parts.SPLIT):
        parts.write_json(directory / name, {})
    (directory / parts.MODEL_CARD).write_text("Random weights, for tests.\n")
    parts.seal_bundle(directory, {})
    return parts.load_bundle(directory)


@pytest.fixture(scope="session")
def certificates(make_once: Callable[..., Path]) -> Path:
    """Folders of TLS: `good`, with the clients lab and gone, whose certificate has expired; and `other`, of a stranger.

    Besides: `expired`, whose server certificate has expired; `elsewhere`, whose server is not localhost. Both belong to
    authorities of their own.
    """
    return make_once("certificates", _make_certificates)


def _make_certificates(root: Path) -> None:
    import datetime

    from serving import certificates

    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)
    certificates.make_certificates(root / "good", ["triton.lab"], ["lab"])
    certificates.make_certificates(root / "good", clients=["gone"], days=1, now=past)
    certificates.make_certificates(root / "other", clients=["lab"])
    certificates.make_certificates(root / "expired", clients=["lab"], days=1, now=past)
    names, certificates.LOCAL_NAMES = certificates.LOCAL_NAMES, ()
    try:
        certificates.make_certificates(root / "elsewhere", ["triton.lab"], ["lab"])
    finally:
        certificates.LOCAL_NAMES = names


@pytest.fixture
def write_tokens(tmp_path: Path) -> "Callable[..., tuple[Path, dict[str, str]]]":
    """A function: roles -> a tokens file with one token of each, and role -> token."""
    from contract.access import append_token, make_token

    def write(*roles: str, name: str = "tokens.jsonl") -> tuple[Path, dict[str, str]]:
        tokens = {}
        for role in roles:
            tokens[role], entry = make_token(f"{role} user", role)
            append_token(tmp_path / name, entry)
        return tmp_path / name, tokens

    return write


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own servers reaches a test."""
    for name in (
        "CXR_TLS_CA",
        "CXR_TLS_CERT",
        "CXR_TLS_KEY",
        "CXR_TLS_SERVER_NAME",
        "CXR_TOKEN",
        "CXR_TOKEN_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
