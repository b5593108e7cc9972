"""Text from a caller, and series of it: a single string is a series too, whose letters would pass for ids."""

from collections.abc import Iterable

from contract.errors import InputError


def require_strings(values: Iterable[str], name: str) -> tuple[str, ...]:
    """Return the strings; InputError for one bare string, for anything else that is no series, or for another type.

    Args:
        values: A list, a tuple, a generator, an array of strings.
        name: Of the argument, for the message, which never repeats a value: it may be a patient's id.
    """
    if isinstance(values, (str, bytes, bytearray)):
        raise InputError(f"{name} must be a list of strings, not one string: put brackets around it.")
    try:
        strings = tuple(values)
    except TypeError as error:
        raise InputError(f"{name} must be a list of strings, not of type {type(values).__name__}.") from error
    for place, value in enumerate(strings, start=1):
        if not isinstance(value, str):
            raise InputError(f"Entry {place} of {name} must be text, not of type {type(value).__name__}.")
    return strings


def require_text(value: str, name: str) -> str:
    """Return the text; InputError for another type, or for surrogates, which no message holds."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, not of type {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds characters that cannot be printed, as names of files that are not UTF-8 do."
        ) from error
    return value
