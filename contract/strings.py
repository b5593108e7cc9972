"""Check text and lists of text from a caller. A single string is iterable too, and its letters would look like ids."""

from collections.abc import Iterable

from contract.errors import InputError


def require_strings(values: Iterable[str], name: str) -> tuple[str, ...]:
    """Return the strings. Raise InputError for a single string, for a value that is not iterable, or for another type.

    Args:
        values: A list, a tuple, a generator, an array of strings.
        name: Name of the argument, for the message. The message never repeats a value, which may be a patient's id.
    """
    if isinstance(values, (str, bytes, bytearray)):
        raise InputError(f"{name} must be a list of strings, not one string. Put brackets around it.")
    try:
        strings = tuple(values)
    except TypeError as error:
        raise InputError(f"{name} must be a list of strings, not of type {type(values).__name__}.") from error
    for index, value in enumerate(strings, start=1):
        if not isinstance(value, str):
            raise InputError(f"Entry {index} of {name} must be text, not of type {type(value).__name__}.")
    return strings


def require_text(value: str, name: str) -> str:
    """Return the text. Raise InputError for another type, or for surrogates, which no gRPC message can hold."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, not of type {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds characters that are not valid text, as in a file name that is not UTF-8."
        ) from error
    return value
