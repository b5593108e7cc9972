"""Several servers of one kind: each request goes to the next one, and to another one if a server does not answer.

Every question of one operation goes to the same server. So an answer is read with the labels and thresholds of the
server that gave it, also while the servers hold different models. gRPC's own `round_robin` would hide which server
answered, and two servers may give one version number to two models. So this module takes turns itself.

An operation is repeated only if it changes nothing, or if a repetition changes nothing more.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from client.channel import Calls
from client.deadline import Deadline
from client.steps import Steps, pause
from contract.errors import BusyError, ConfigError, CxrError, DeadlineError, UnavailableError

S = TypeVar("S")
T = TypeVar("T")

MAX_RETRIES: Final = 100
_FIRST_PAUSE_S: Final = 0.1  # before a server is asked again; doubled each time
_LONGEST_PAUSE_S: Final = 2.0
_AWAY_S: Final = 5.0  # a server that did not answer, or not in time, comes last for so long


class Rotation(Generic[S]):
    """Servers in turn. Several threads or tasks may use it at once."""

    def __init__(self, servers: Sequence[S], retries: int | None = None) -> None:
        """Take the servers.

        Args:
            servers: At least one.
            retries: How often an operation is repeated. None: once for each further server.

        Raises:
            ConfigError: `retries` is not a whole number from 0 to 100.
        """
        self.servers = tuple(servers)
        self.retries = len(self.servers) - 1 if retries is None else check_retries(retries)
        self._lock = threading.Lock()
        self._next = random.randrange(len(self.servers))  # noqa: S311  many clients start at different servers
        self._away_until = [0.0] * len(self.servers)

    def run(
        self,
        operation: Callable[[S], Steps[T]],
        deadline: Deadline,
        *,
        elsewhere: tuple[type[CxrError], ...] = (),
        calls: Calls | None = None,
    ) -> Steps[T]:
        """Run an operation on the next server. Repeat it if the server does not answer or its queue is full.

        The operation must change nothing, or nothing more when it is repeated. A repetition on a server that failed
        already waits before. No repetition starts after the deadline. A call whose time is up is not repeated.

        Args:
            operation: Asks the given server.
            deadline: Deadline of all attempts together.
            elsewhere: Errors after which every other server, but not the same one again, is asked. That is no
                repetition.
            calls: The group with which the operation is cancelled.

        Raises:
            CancelledError: The group was cancelled.
        """
        order, failures = self._take_order(), 0
        while True:
            place = order[0]
            try:
                result = yield from operation(self.servers[place])
            except (UnavailableError, BusyError):
                failures += 1
                self._put_last(place)
                order = [*order[1:], place]
                wait_s = _choose_pause(failures + 1 - len(order))
                if failures > self.retries or not deadline.allows(wait_s):
                    raise
            except DeadlineError:
                self._put_last(place)
                raise
            except elsewhere:
                order = order[1:]
                wait_s = _choose_pause(failures + 1 - len(order)) if failures else 0.0
                if not order or not deadline.allows(wait_s):
                    raise
            else:
                self._away_until[place] = 0.0
                return result
            if wait_s:
                yield from pause(wait_s, calls.cancelled if calls else None)
            if calls is not None:
                calls.require_running()

    def _put_last(self, place: int) -> None:
        self._away_until[place] = time.monotonic() + _AWAY_S

    def _take_order(self) -> list[int]:
        """Return the places of all servers, the next one first, and those that did not answer lately last."""
        with self._lock:
            first, self._next = self._next, (self._next + 1) % len(self.servers)
        now = time.monotonic()
        places = [(first + step) % len(self.servers) for step in range(len(self.servers))]
        return sorted(places, key=lambda place: self._away_until[place] > now)


def check_retries(retries: int) -> int:
    """Return a number of retries. Raise ConfigError if it is not a whole number from 0 to 100."""
    if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= MAX_RETRIES:
        value = retries if isinstance(retries, (int, float)) else f"of type {type(retries).__name__}"
        raise ConfigError(f"retries must be a whole number from 0 to {MAX_RETRIES}, not {value}.")
    return retries


def _choose_pause(repetition: int) -> float:
    """Return the seconds to wait, at random, so that many clients do not come back together.

    Args:
        repetition: Number of times that all servers failed, 1 or more; below: another server is left to ask.
    """
    if repetition < 1:
        return 0.0
    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (repetition - 1))
    return random.uniform(longest / 2, longest)  # noqa: S311
