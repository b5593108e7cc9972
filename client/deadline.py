"""How long a call may take: checked where it is given, and shared by all that one call sends."""

import math
import time
from typing import Final

import numpy as np

from contract.errors import ConfigError, DeadlineError

_LONGEST_S: Final = 31_536_000.0  # a year


class Deadline:
    """A point in time that several calls share."""

    def __init__(self, timeout_s: float) -> None:
        """Begin now; `timeout_s` as for `check_timeout`."""
        self._timeout_s = check_timeout(timeout_s)
        self._end = time.monotonic() + self._timeout_s

    def left(self) -> float:
        """Return the seconds left; DeadlineError when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"The servers did not answer within {self._timeout_s:g} s.")
        return left


def check_timeout(timeout_s: float) -> float:
    """Return a time-out in seconds; ConfigError unless it is a number above 0 and at most a year."""
    number = isinstance(timeout_s, (int, float, np.number)) and not isinstance(timeout_s, bool)
    try:
        seconds = float(timeout_s) if number else math.nan
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds <= _LONGEST_S:  # false for NaN
        given = f"{seconds:g}" if number else f"of type {type(timeout_s).__name__}"
        raise ConfigError(
            f"timeout_s (--timeout) must be a number of seconds above 0 and at most a year, such as 10; "
            f"it is {given}."
        )
    return seconds
