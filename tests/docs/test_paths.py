"""What the documents name is there: files, folders, modules, functions, pages and their headings."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cli.app import app
from contract.installation import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = {*PACKAGES, "docker", "docs", "examples", "tests", ".ci", ".github"}
PATH = re.compile(r"\.?[\w-]+(/[\w.*-]+)*/?")
MODULE = re.compile(r"([a-z_]+)((?:\.\w+)+)")


def read_prose(document: Path) -> str:
    """Return a document without its blocks of code."""
    return re.sub(
        r"^ *```.*?^ *```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def find_code(document: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", read_prose(document)))


def find_links(document: Path) -> set[str]:
    links = set(re.findall(r"\]\(([^)\s]+)\)", read_prose(document)))
    return {link for link in links if not re.match(r"[a-z]+:", link)}


def find_paths(document: Path) -> set[str]:
    """Return what stands in backticks and begins with a folder of this repository."""
    return {
        code
        for code in find_code(document)
        if PATH.fullmatch(code) and code.split("/")[0] in FOLDERS and "/" in code
    }


def make_anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", read_prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or is written in the module that its beginning names."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        files = [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
        if files:
            text = files[0].read_text(encoding="utf-8")
            return all(re.search(rf"\b{part}\b", text) for part in parts[length:])
    return False


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_is_there(document):
    missing = [path for path in sorted(find_paths(document)) if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_is_there(document):
    names = [match for code in find_code(document) if (match := MODULE.match(code)) and match[1] in PACKAGES]
    wrong = [
        match[0]
        for match in names
        if Path(match[0]).suffix[1:] not in ("py", "md") and not is_there(match[0])
    ]
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for link in sorted(find_links(document)):
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        assert target.is_relative_to(ROOT)
        assert not anchor or anchor in make_anchors(target), link


def test_the_architecture_names_every_room():
    named = find_paths(ROOT / "docs" / "architecture.md") | find_code(ROOT / "docs" / "architecture.md")
    assert {f"{package}/" for package in PACKAGES} <= named
    assert len(find_paths(ROOT / "docs" / "architecture.md")) > 60


def test_pictures_are_small_and_bring_all_they_need():
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert {picture.suffix for picture in pictures} <= {".png", ".svg"}
    for picture in pictures:
        assert picture.stat().st_size <= 300_000, picture.name
        if picture.suffix == ".svg":
            assert not re.search(r"(href|src|url)\W+https?:", picture.read_text(encoding="utf-8"))


def list_commands(group: Any, path: str = "cxr") -> set[str]:
    """Return every command below a group by how it is typed."""
    found = set()
    for name, command in group.commands.items():
        if not command.hidden:
            found.add(f"{path} {name}")
        if hasattr(command, "commands"):
            found |= list_commands(command, f"{path} {name}")
    return found


def test_the_page_of_commands_names_each_one():
    rows = (ROOT / "docs" / "commands.md").read_text().splitlines()
    named = set()
    for row in rows:
        if row.startswith("| `cxr"):
            first, *rest = re.findall(r"`([^`]+)`", row.split(" | ")[0])
            group = first.rpartition(" ")[0]
            named |= {first, *(word if word.startswith("cxr") else f"{group} {word}" for word in rest)}
    alone = {"cxr data", "cxr bench", "cxr monitor", "cxr sign"}  # groups alone
    assert named == list_commands(get_command(app)) - alone
