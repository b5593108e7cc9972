"""The deadline of a call: a checked number of seconds, which all requests of the call share."""

import math
import time
from typing import Final

import numpy as np

from contract.errors import ConfigError, DeadlineError

_LONGEST_S: Final = 31_536_000.0  # a year


class Deadline:
    """A point in time. Every request of a call gets the seconds that are left until then."""

    def __init__(self, timeout_s: float) -> None:
        """Start the clock. ConfigError: as in `check_timeout`."""
        self._timeout_s = check_timeout(timeout_s)
        self._end = time.monotonic() + self._timeout_s

    def left(self) -> float:
        """Return the seconds left. Raise DeadlineError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"The servers did not answer within {self._timeout_s:g} s.")
        return left

    def allows(self, seconds: float) -> bool:
        """Whether more than so many seconds are left."""
        return self._end - time.monotonic() > seconds


def check_timeout(timeout_s: float) -> float:
    """Return a time-out in seconds. Raise ConfigError unless it is a number above 0 and at most a year."""
    is_number = isinstance(timeout_s, (int, float, np.number)) and not isinstance(timeout_s, bool)
    try:
        seconds = float(timeout_s) if is_number else math.nan
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds <= _LONGEST_S:  # also false for NaN
        value = f"{seconds:g}" if is_number else f"of type {type(timeout_s).__name__}"
        raise ConfigError(
            f"timeout_s (--timeout) must be a number of seconds above 0 and at most a year, such as 10, not {value}."
        )
    return seconds
