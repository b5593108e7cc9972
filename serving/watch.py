"""Watch a running Triton and a running sidecar: check that they answer real requests, and find the reason if not.

`TritonWatch` sends requests to `predict_study`, `predict_image` and `predict_text` every few seconds, unless clients
got answers from them meanwhile. It gives a verdict, one sentence, if
- a model fails twice in a row,
- a request hangs: no model on its way has worked for some seconds (see `serving.flow`),
- the start hangs for a minute, or
- a python process of a ready model has ended or is stopped, even if another instance still answers.

A server that is slow because it is busy gets no verdict. This module restarts nothing; see `serving.supervisor`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from contract.address import CHANNEL_OPTIONS
from contract.connection import PLAIN, Connection
from contract.errors import BusyError, CxrError
from contract.probe_case import PROBE_INPUTS
from serving.flow import BUSY, COPYING, SERVER, Flow
from serving.probe import ask
from serving.regions import RegionSweeper
from serving.stubs import Stub, list_stubs, read_process

LOOK_S: Final = 0.5
_ASK_EVERY_S: Final = 3.0
_ASK_SHARE: Final = 0.02  # largest share of the time for requests, on a slow machine
_ASK_AT_MOST_EVERY_S: Final = 15.0
_STANDSTILL_S: Final = 6.0
_COPYING_S: Final = 20.0  # the same, while the server itself is busy, perhaps copying large files
_DIRECT_AFTER_S: Final = (
    2.0  # without an answer for so long, the first models on the way are also tested alone
)
_START_STANDSTILL_S: Final = 60.0  # without an answer and without work, during the start
_HOPELESS_S: Final = 120.0  # without an answer for so long, the verdict comes even if the server is busy
_FAILURES: Final = 2
_STUB_LOOKS: Final = 4  # in a row; an unloading version loses its stubs a moment before it is no longer ready
_SWEEP_EVERY_S: Final = 2.0
_CONTROL_TIMEOUT_S: Final = 1.0
_PAUSE_S: Final = 5.0  # this process itself was paused for so long, so its timings are not valid


class Question:
    """One model that gets a request again and again: the last result, and since when an answer is due."""

    def __init__(self, client: Any, model: str, inputs: Sequence[str], steps: Sequence[str]) -> None:
        """Take the model, the names of its inputs and the models on its way."""
        self.model, self.steps = model, tuple(steps)
        self.answered = False
        self.failures = 0
        self.waiting_since: float | None = None
        self.trouble = ""
        self._client, self._inputs = client, tuple(inputs)
        self._thread: threading.Thread | None = None
        self._next_at = 0.0

    def update(self, now: float, *, skip: bool = False) -> None:
        """Send a request when it is time. `skip`: clients got answers since the last check."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = None
        if skip and self.failures == 0:
            self._note_answer(now, 0.0)
        if now >= self._next_at:
            self.waiting_since = self.waiting_since or now
            self._thread = threading.Thread(target=self._ask, name=f"cxr-ask-{self.model}", daemon=True)
            self._thread.start()

    def rest(self) -> None:
        """Reset the waiting time, unless a request is running."""
        if self._thread is None or not self._thread.is_alive():
            self.waiting_since, self.failures = None, 0

    def shift(self, now: float) -> None:
        """Restart the timing after a pause of this process."""
        if self.waiting_since is not None:
            self.waiting_since = now

    def _ask(self) -> None:
        began = time.monotonic()
        try:
            ask(self._client, self.model, _HOPELESS_S, self._inputs)
        except BusyError:
            self._next_at = time.monotonic() + 1.0
        except CxrError as error:
            self.trouble = str(error)
            self.answered = False
            self.failures += 1
            self._next_at = time.monotonic() + LOOK_S
        except Exception as error:  # the connection was closed meanwhile
            self.trouble = f"{self.model}: {type(error).__name__}"
        else:
            now = time.monotonic()
            self._note_answer(now, now - began)

    def _note_answer(self, now: float, seconds: float) -> None:
        self.answered, self.failures, self.waiting_since = True, 0, None
        self._next_at = now + min(max(_ASK_EVERY_S, seconds / _ASK_SHARE), _ASK_AT_MOST_EVERY_S)


@dataclass(frozen=True)
class _Counts:
    """Triton's counters: answered and failed requests by model, and the loaded versions."""

    successes: dict[str, int]
    failures: dict[str, int]
    versions: list[tuple[str, str]]


class TritonWatch:
    """Watches one Triton in its own thread until `close`."""

    def __init__(
        self, url: str, pid: int, models: Sequence[str], *, up: bool, connection: Connection = PLAIN
    ) -> None:
        """Start watching.

        Args:
            url: host:port of Triton's gRPC service.
            pid: Triton's process on this machine.
            models: The models of `contract.probe_case.PROBED` that it serves.
            up: Whether it has answered already. A starting server may be silent for long.
            connection: TLS of that Triton.

        Raises:
            ConfigError: A file of TLS cannot be used.
        """
        self.verdict: str | None = None
        self._pid, self._models, self._up = pid, tuple(models), up
        self._began = time.monotonic()
        self._silent_since = self._began if up else None
        self._client = connection.open_triton(triton.InferenceServerClient, url, CHANNEL_OPTIONS)
        self._sweeper = RegionSweeper(self._client)
        self._flow = Flow()
        self._questions: dict[str, Question] = {}
        self._direct: dict[str, Question] = {}
        self._instances: dict[tuple[str, str], int] = {}
        self._lacking: dict[tuple[str, str], int] = {}
        self._failed: dict[str, int] = {}
        self._swept_at = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cxr-watch-triton", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the last real inference of every model succeeded."""
        if self.verdict is not None or self._closing.is_set():
            return False
        return (self._up or self._silent_since is not None) and all(map(self.answers, self._models))

    def answers(self, model: str) -> bool:
        """Return whether the last real inference of a model succeeded."""
        question = self._questions.get(model)
        answered = self._up if question is None else question.answered
        return answered and self.verdict is None

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        looked_at = time.monotonic()
        while not self._closing.wait(LOOK_S):
            now = time.monotonic()
            if now - looked_at > _PAUSE_S:
                self._silent_since = self._silent_since and now
                for question in (*self._questions.values(), *self._direct.values()):
                    question.shift(now)
            with contextlib.suppress(
                Exception
            ):  # no file, thread or memory is available; the next check may succeed
                self._look(now)
            looked_at = now

    def _look(self, now: float) -> None:
        counts = self._read_counts()
        stubs = list_stubs(self._pid)
        if counts is not None:
            self._silent_since = now
            self._prepare()
            self._check_stubs(counts, stubs)
        self._ask(now, counts)
        self._flow.update(now, counts.successes if counts else None, stubs, read_process(self._pid))
        self.verdict = self.verdict or self._judge(now)
        if counts is not None and now - self._swept_at > _SWEEP_EVERY_S:
            self._swept_at = now
            self._sweeper.sweep()

    def _ask(self, now: float, counts: _Counts | None) -> None:
        for model, question in self._questions.items():
            failed = counts.failures.get(model, 0) if counts else 0
            grown = self._flow.has_grown(model, counts.successes if counts else None)
            question.update(now, skip=grown and failed == self._failed.get(model))
            self._failed[model] = failed
            waits = question.waiting_since is not None and now - question.waiting_since > _DIRECT_AFTER_S
            for step in question.steps:
                if step in self._direct:
                    self._direct[step].update(now) if waits else self._direct[step].rest()

    def _judge(self, now: float) -> str | None:
        for question in (*self._questions.values(), *self._direct.values()):
            if question.failures >= _FAILURES:
                return question.trouble
            if question.waiting_since is None:
                continue
            idle_s = self._flow.get_idle_s(question.steps, question.waiting_since, now)
            copying_s = self._flow.get_idle_s([COPYING], question.waiting_since, now)
            if idle_s > (_COPYING_S if copying_s < _STANDSTILL_S else _STANDSTILL_S):
                return f"{question.model} hangs: no answer and no working model for {idle_s:.0f} s."
            if now - question.waiting_since > _HOPELESS_S:
                return f"{question.model} did not answer for {_HOPELESS_S:g} s."
        if (silence := self._judge_silence(now)) is not None:
            return silence
        for (model, version), looks in self._lacking.items():
            if looks >= _STUB_LOOKS:
                return f"A python process of {model}, version {version}, has ended or is stopped."
        return None

    def _judge_silence(self, now: float) -> str | None:
        if self._silent_since is None:
            idle_s = self._flow.get_all_idle_s(self._began, now)
            if idle_s > _START_STANDSTILL_S:
                return f"its start hangs: no process has worked for {idle_s:.0f} s."
        else:
            idle_s = self._flow.get_idle_s([SERVER], self._silent_since, now)
            if idle_s > _STANDSTILL_S or now - self._silent_since > _HOPELESS_S:
                return f"it has not answered for {now - self._silent_since:.0f} s."
        return None

    def _read_counts(self) -> _Counts | None:
        try:
            answer = self._client.get_inference_statistics(client_timeout=_CONTROL_TIMEOUT_S)
        except InferenceServerException:
            return None
        counts = _Counts({}, {}, [])
        for entry in answer.model_stats:
            statistics = entry.inference_stats
            counts.successes[entry.name] = counts.successes.get(entry.name, 0) + statistics.success.count
            counts.failures[entry.name] = counts.failures.get(entry.name, 0) + statistics.fail.count
            counts.versions.append((entry.name, entry.version))
        return counts

    def _prepare(self) -> None:
        """Create the missing questions, from the server's configs of its ensembles."""
        for model in self._models:
            if model in self._questions:
                continue
            config = self._read_config(model, "")
            if config is None:
                return
            inputs = [entry.name for entry in config.input]
            steps = list(config.ensemble_scheduling.step)
            question = Question(self._client, model, inputs, [model, *(step.model_name for step in steps)])
            question.answered = self._up
            self._questions[model] = question
            for step in steps:
                input_map = dict(step.input_map)
                if input_map and all(
                    name == value and name in PROBE_INPUTS for name, value in input_map.items()
                ):
                    name = step.model_name
                    self._direct.setdefault(name, Question(self._client, name, list(input_map), [name]))

    def _check_stubs(self, counts: _Counts, stubs: Sequence[Stub]) -> None:
        alive: dict[tuple[str, str], int] = {}
        for stub in stubs:
            alive[stub.model, stub.version] = alive.get((stub.model, stub.version), 0) + stub.process.runs
        for key in counts.versions:
            if key not in self._instances and (config := self._read_config(*key)) is not None:
                self._instances[key] = _count_stubs(config, seen=key in alive)
            lacks = alive.get(key, 0) < self._instances.get(key, 0) and self._is_ready(*key)
            self._lacking[key] = self._lacking.get(key, 0) + 1 if lacks else 0
        for gone in self._lacking.keys() - set(counts.versions):
            del self._lacking[gone]

    def _is_ready(self, name: str, version: str) -> bool:
        try:
            return bool(self._client.is_model_ready(name, version, client_timeout=_CONTROL_TIMEOUT_S))
        except InferenceServerException:
            return False

    def _read_config(self, name: str, version: str) -> Any:
        try:
            return self._client.get_model_config(name, version, client_timeout=_CONTROL_TIMEOUT_S).config
        except InferenceServerException:
            return None


def _count_stubs(config: Any, *, seen: bool) -> int:
    """Return how many stubs a version must have; 0 if it runs inside the server."""
    if not (config.backend == "python" or seen):
        return 0
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)


class HealthWatch:
    """Checks in its own thread whether a small server is up, until `close`."""

    def __init__(self, is_ready: Callable[[], bool], pid: int, *, up: bool) -> None:
        """Start watching. `is_ready` has its own deadline; `pid` is the process; `up`: it has answered already."""
        self.verdict: str | None = None
        self.ready = False
        self._is_ready, self._pid, self._served = is_ready, pid, up
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cxr-watch-health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        worked_at = looked_at = time.monotonic()
        cpu_s = 0.0
        while not self._closing.wait(LOOK_S):
            answer = self._ask()
            self.ready = answer is True
            self._served = self._served or self.ready
            process = read_process(self._pid)
            used_s = process.cpu_s - cpu_s if process else 0.0
            cpu_s = process.cpu_s if process else 0.0
            now = time.monotonic()
            elapsed_s, looked_at = now - looked_at, now
            works = self.ready or used_s > BUSY * elapsed_s
            if works or answer is None or not self._served or elapsed_s > _PAUSE_S:
                worked_at = now
            elif now - worked_at > _STANDSTILL_S:
                self.verdict = f"it hangs: no answer for {now - worked_at:.0f} s."

    def _ask(self) -> bool | None:
        """Return whether the server is up; None if it could not be asked, which says nothing about the server."""
        try:
            return self._is_ready()
        except Exception:  # a file of TLS is being replaced, or no file or thread is available
            return None
