"""The tree drawn in the module equals the classes."""

import inspect
import re

import pytest

from contract import errors

CLASSES = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}


def read_tree() -> dict[str, tuple[str | None, str]]:
    """Class name -> (name of its parent, text behind it), as drawn in the docstring."""
    path: list[str] = []
    tree = {}
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"([│ ]*)(?:[├└]── )?([A-Z]\w+Error)\b *(.*)", line)
        if match is None:
            continue
        depth = 0 if match[2] == "CxrError" else len(match[1]) // 4 + 1
        path = [*path[:depth], match[2]]
        tree[match[2]] = (path[-2] if depth else None, match[3])
    return tree


def test_the_drawn_tree_is_the_real_one():
    drawn = {name: parent for name, (parent, _) in read_tree().items()}
    real = {name: None if name == "CxrError" else value.__base__.__name__ for name, value in CLASSES.items()}
    assert drawn == real
    assert len(drawn) == 16


@pytest.mark.parametrize("name", CLASSES)
def test_exit_codes_are_those_drawn(name):
    tree = read_tree()
    text, parent = tree[name][1], tree[name][0]
    while "exit" not in text and parent:
        parent, text = tree[parent]
    drawn = re.search(r"exit (\d)", text)
    assert CLASSES[name].exit_code == (int(drawn[1]) if drawn else 1)


def test_every_error_is_one_of_the_project_and_documented():
    for value in CLASSES.values():
        assert issubclass(value, errors.CxrError)
        assert value.__doc__
        assert str(value("What is wrong.")) == "What is wrong."
