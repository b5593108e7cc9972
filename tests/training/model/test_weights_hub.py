"""Pretrained weights by a hub id: from a server that answers as the hub does, from the cache, or one clear sentence."""

import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tokenizers import Tokenizer

from contract.errors import ConfigError
from training.config.settings import DataConfig, TrainConfig, WeightsConfig
from training.model.model import CxrModel
from training.model.weights import (
    adopt_text_model,
    load_image_weights,
    load_text_weights,
    save_text_tokenizer,
)

NOWHERE = "http://127.0.0.1:9"  # the port "discard", at which nothing listens


@pytest.fixture
def model(small_config):
    torch.manual_seed(0)
    return CxrModel(small_config).eval()


class Hub(ThreadingHTTPServer):
    """Answers as the Hugging Face hub does for the files of a directory."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.root = root
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        path = self.server.root / self.path.partition("?")[0].replace("/resolve/main/", "/").strip("/")
        body = path.read_bytes() if path.is_file() else b""
        self.send_response(200 if path.is_file() else 404)
        if not path.is_file():
            code = "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"
            self.send_header("X-Error-Code", code)
        self.send_header("ETag", f'"{path.name}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def point_to(monkeypatch, address: str, cache: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub(tmp_path / "hub") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        point_to(monkeypatch, server.address, tmp_path / "cache")
        yield server
        server.shutdown()
        thread.join()


def test_image_weights_come_from_the_hub_and_then_from_its_cache(model, hub, tmp_path, monkeypatch):
    state = CxrModel(model.config).image_encoder.backbone.state_dict()
    for name in ("swin.a", "swin.b", "empty"):
        (hub.root / "timm" / name).mkdir(parents=True)
    save_file(state, hub.root / "timm" / "swin.a" / "model.safetensors")
    torch.save(state, hub.root / "timm" / "swin.b" / "pytorch_model.bin")
    first = load_image_weights(model, "swin.a")
    torch.testing.assert_close(model.image_encoder.backbone.state_dict(), state, rtol=0, atol=0)
    assert load_image_weights(model, "hf-hub:timm/swin.b").loaded == first.loaded
    with pytest.raises(ConfigError, match="--image-weights"):
        load_image_weights(model, "timm/swin.c")
    with pytest.raises(ConfigError, match=r"have no model.safetensors or pytorch_model.bin"):
        load_image_weights(model, "timm/empty")
    point_to(monkeypatch, NOWHERE, tmp_path / "cache")
    assert load_image_weights(model, "timm/swin.a") == replace(first, source="timm/swin.a")


def test_a_text_model_comes_from_the_hub(model, hub, tmp_path):
    path = hub.root / "group" / "bert"
    model.text_encoder.bert.save_pretrained(path)
    (path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "heart", "Heart"])
    )
    (path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    config = TrainConfig(
        model=replace(model.config, text_width=48),
        weights=WeightsConfig(text="group/bert"),
        data=DataConfig(max_length=64),
    )
    fresh = CxrModel(adopt_text_model(config).model)
    assert load_text_weights(fresh, "group/bert").absent == ()
    torch.testing.assert_close(
        fresh.text_encoder.bert.state_dict(), model.text_encoder.bert.state_dict(), rtol=0, atol=0
    )
    save_text_tokenizer("group/bert", tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("Heart").ids == [2, 6, 3]


def use(kind: str, model: CxrModel, path: Path) -> None:
    source = "nobody/nothing"
    if kind == "image":
        load_image_weights(model, source)
    elif kind == "text":
        load_text_weights(model, source)
    elif kind == "config":
        adopt_text_model(TrainConfig(model=model.config, weights=WeightsConfig(text=source)))
    else:
        save_text_tokenizer(source, path)


@pytest.mark.parametrize("kind", ["image", "text", "config", "tokenizer"])
@pytest.mark.parametrize("network", ["offline", "unreachable"])
def test_without_a_network_one_sentence_says_at_once_what_to_do(
    model, tmp_path, monkeypatch, check_sentence, network, kind
):
    point_to(monkeypatch, NOWHERE, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", network == "offline")
    with pytest.raises(ConfigError):  # what is imported on the way takes longer
        use(kind, model, tmp_path / "tokenizer.json")
    start = time.monotonic()
    with pytest.raises(ConfigError) as info:
        use(kind, model, tmp_path / "tokenizer.json")
    assert time.monotonic() - start < 5
    check_sentence(info)
    assert f"--{'image' if kind == 'image' else 'text'}-weights" in str(info.value)
    assert "nobody/nothing" in str(info.value)
