"""The 3,955 real reports of Open-i: read as they always were, and familiar to a model that learnt from others."""

import hashlib
import random
import tarfile
from dataclasses import astuple
from pathlib import Path

import pytest

from contract.errors import ReportError
from contract.notes import note_reports
from contract.report.text import (
    TEXT_MODES,
    Report,
    ReportTokenizer,
    clean_text,
    format_report,
    parse_report,
    select_text,
    train_tokenizer,
)

COUNTS = {"indication": 3662, "findings": 3927, "findings_masked": 3927, "full": 3927}
DIGEST = "734bb1dd5de0f532e55e6c752d18a8d4a4f726e48d83aac3277224f54e8dbc71"

FOREIGN = {
    "Spanish": "Silueta card\u00edaca de tama\u00f1o normal. No se observan infiltrados ni derrame pleural.",
    "short Spanish": "Sin hallazgos patol\u00f3gicos agudos.",
    "German": "Herz normal gro\u00df. Keine Stauung, kein Erguss. Zwerchfell beidseits glatt begrenzt.",
    "short German": "Kein Pneumothorax, kein Pleuraerguss.",
    "French": "Silhouette cardiaque de taille normale. Pas d'\u00e9panchement pleural ni de pneumothorax.",
    "Italian": "Non lesioni pleuro-parenchimali a focolaio in atto. Ombra cardiaca nei limiti.",
    "Portuguese": "\u00c1rea card\u00edaca normal. Aus\u00eancia de derrame pleural. Seios costofr\u00eanicos livres.",
    "Polish": "P\u0142uca bez zmian ogniskowych. Sylwetka serca w normie.",
    "Russian": "\u0421\u0435\u0440\u0434\u0446\u0435 \u0432 \u043d\u043e\u0440\u043c\u0435.",
    "Chinese": "\u53cc\u80ba\u7eb9\u7406\u6e05\u6670\uff0c\u5fc3\u5f71\u4e0d\u5927\u3002",
    "base64": "JVBERi0xLjQKJeLjz9MKMSAwIG9iago8PC9UeXBlL0NhdGFsb2cvUGFnZXMgMiAwIFI+PgplbmRvYmoK",
    "hash": "8fb6de7eec73d8c3665067ad4bb003ccd57f971ae316d2642e1627ac7268667a",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "keys": "asdf qwer",
    "more keys": "asdf jkl; qwer uiop zxcv",
    "filler": "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor",
    "path": "/home/user/reports/r1234.txt",
}


@pytest.fixture(scope="module")
def real_files(openi_directory) -> dict[str, bytes]:
    with tarfile.open(openi_directory / "NLMCXR_reports.tgz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}


@pytest.fixture(scope="module")
def real_reports(real_files) -> dict[str, Report]:
    """Name of the file -> what is read of it; an empty report where there is nothing."""
    return {name: parse(real_files[name]) for name in sorted(real_files)}


@pytest.fixture(scope="module")
def read_again(real_reports) -> dict[str, Report]:
    """The same reports, written as text and read from that."""
    return {name: parse(format_report(report)) for name, report in real_reports.items()}


def parse(data: bytes | str) -> Report:
    try:
        return parse_report(data)
    except ReportError:
        return Report()


def select(report: Report, mode: str) -> str:
    try:
        return select_text(report, mode)
    except ReportError:
        return ""


def test_real_reports_read_as_they_always_were(real_reports, read_again):
    """A bundle that was trained before a change of the reader still reads what it was trained on."""
    digest, counts = hashlib.sha256(), dict.fromkeys(TEXT_MODES, 0)
    for name, report in real_reports.items():
        for mode in TEXT_MODES:
            text = select(report, mode)
            assert select(read_again[name], mode) == text
            digest.update(f"{name}\t{mode}\t{text}\n".encode())
            counts[mode] += bool(text)
    assert len(real_reports) == 3955
    assert counts == COUNTS
    assert digest.hexdigest() == DIGEST


def test_reports_read_here_and_in_training_are_equal(real_files, real_reports, read_again):
    openi = pytest.importorskip("training.data.openi")
    marked = read = 0
    for name, report in real_reports.items():
        studied = openi.parse_study(real_files[name], name=name).report
        collapsed = Report(*(" ".join(text.split()) for text in astuple(report)))
        assert collapsed == studied
        assert read_again[name] == collapsed
        whole = " ".join(astuple(report))
        assert "XXX" not in clean_text(whole)
        marked += "XXXX" in whole
        read += any(astuple(report))
    assert read >= 3927  # all but those without findings and impression
    assert marked > 3000


@pytest.mark.parametrize(
    ("mode", "most"), [("findings", 0), ("full", 0), ("findings_masked", 0), ("indication", 60)]
)
def test_familiar_reports_are_not_warned_of_and_others_are(mode, most, real_reports, tmp_path):
    """Half of the reports teach the vocabulary; of indications, which are a few words, 1.6 % may seem unfamiliar."""
    pytest.importorskip("tokenizers")
    texts = [text for report in real_reports.values() if (text := select(report, mode))]
    train_tokenizer(random.Random(0).sample(texts, len(texts) // 2), tmp_path / "tokenizer.json")
    tokenizer = ReportTokenizer.load(tmp_path / "tokenizer.json")
    assert sum(tokenizer.encode(texts).unfamiliar) <= most
    batch = tokenizer.encode([*FOREIGN.values(), texts[0]])
    assert dict(zip(FOREIGN, batch.unfamiliar, strict=False)) == dict.fromkeys(FOREIGN, True)
    *notes, last = note_reports(batch, [()] * len(batch.truncated), text_mode=mode, max_length=256)
    assert all("not in the model's vocabulary" in note.warnings[-1] for note in notes)
    assert last.warnings == ()


def test_a_vocabulary_of_the_project_tells_its_own_texts_from_others(tmp_path: Path):
    pytest.importorskip("tokenizers")
    texts = ["The heart is enlarged.", "There is a left pleural effusion.", "No pneumothorax [MASK] [MASK]."]
    train_tokenizer(texts * 3, tmp_path / "tokenizer.json", vocab_size=200)
    tokenizer = ReportTokenizer.load(tmp_path / "tokenizer.json")
    assert not any(tokenizer.encode([*texts, "Atelectasis.", "5 6 7 8 9", "", "[MASK] [MASK]"]).unfamiliar)
    assert all(tokenizer.encode([*FOREIGN.values()]).unfamiliar)
