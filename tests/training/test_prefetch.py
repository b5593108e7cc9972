"""Results come in order and errors at their place; the thread ends; the meter's figures are exact."""

import threading
import time
from contextlib import closing

import pytest

from training.prefetch import Meter, prefetch


def list_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    assert not list_threads()
    yield
    assert not list_threads()


def fail_at(place):
    def prepare(item):
        if item == place:
            raise KeyError(item)
        return item

    return prepare


@pytest.mark.parametrize("depth", [1, 2, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_all_results_come_in_order(depth, count):
    def prepare(item):
        time.sleep(0.002 * (item % 3 == 0))
        return item * 2

    assert list(prefetch(range(count), prepare, depth)) == [item * 2 for item in range(count)]


def test_results_may_be_none_and_the_thread_is_another():
    assert list(prefetch([None, None], lambda item: item)) == [None, None]
    (name,) = prefetch([0], lambda _: threading.current_thread().name)
    assert name.startswith("prefetch")


def test_nothing_is_prepared_before_it_is_asked_for():
    seen = []
    with closing(prefetch(range(9), seen.append)):
        assert not seen
        assert not list_threads()


@pytest.mark.parametrize("depth", [1, 3])
def test_as_many_results_wait_as_are_allowed(depth):
    seen, ready = [], threading.Semaphore(0)

    def prepare(item):
        seen.append(item)
        ready.release()

    with closing(prefetch(iter(range(99)), prepare, depth)) as results:
        for place in range(3):
            next(results)
            for _ in range(1 + depth if place == 0 else 1):
                assert ready.acquire(timeout=60)
            time.sleep(0.02)  # time enough to take too many
            assert seen == list(range(place + 1 + depth))


@pytest.mark.parametrize("place", [0, 1, 5])
def test_an_error_of_prepare_comes_at_its_place(place):
    results = prefetch(range(9), fail_at(place))
    assert [next(results) for _ in range(place)] == list(range(place))
    with pytest.raises(KeyError, match=str(place)):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_the_items_comes_at_its_place():
    results = prefetch(map(fail_at(2), range(9)), str)
    assert [next(results), next(results)] == ["0", "1"]
    with pytest.raises(KeyError):
        next(results)


def test_closing_ends_the_thread_and_what_was_not_begun():
    begun, is_busy, go_on = [], threading.Event(), threading.Event()

    def prepare(item):
        begun.append(item)
        if item == 1:
            is_busy.set()
            assert go_on.wait(60)
        return item

    results = prefetch(range(99), prepare, depth=5)
    assert next(results) == 0
    assert len(list_threads()) == 1
    assert is_busy.wait(60)
    threading.Timer(0.05, go_on.set).start()
    results.close()
    assert begun == [0, 1]
    assert not list_threads()


def test_leaving_the_loop_ends_the_thread():
    for item in Meter().watch(prefetch(range(99), str)):
        if item == "2":
            break
    assert not list_threads()


def test_an_error_in_the_loop_ends_the_thread():
    def loop():
        for item in Meter().watch(prefetch(range(99), int)):
            raise KeyError(item)

    with pytest.raises(KeyError):
        loop()


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_that_lets_nothing_wait_is_refused(depth):
    with pytest.raises(ValueError, match="at least 1"):
        prefetch([], str, depth)


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def take(self, seconds: float):
        """Return a function that takes so long and gives its argument back."""

        def work(item=None):
            self.now_s += seconds
            return item

        return work


def test_rates_tell_loader_and_device_apart():
    clock = Clock()
    meter = Meter(clock.take(1.0), clock=clock)
    clock.take(50.0)()  # before the epoch
    for _ in meter.watch(map(meter.time(clock.take(3.0)), range(4))):
        clock.take(1.0)()
        meter.count(10)
    meter.finish()
    clock.take(50.0)()  # validation
    assert meter.studies == 40
    assert (
        meter.rates()
        == {  # 12 s of loading, all of them waited for; 4 s of steps and 1 s of the last wait
            "loader": pytest.approx(40 / 12),
            "device": pytest.approx(40 / 5),
            "both": pytest.approx(40 / 17),
            "waiting_share": pytest.approx(12 / 17),
        }
    )


def test_a_device_is_waited_for_only_at_the_end():
    calls = []
    meter = Meter(lambda: calls.append(1))
    for _ in meter.watch(prefetch(range(5), meter.time(str))):
        meter.count(1)
        meter.rates()
    assert not calls
    meter.finish()
    assert calls == [1]


def test_rates_in_the_middle_leave_out_what_was_prepared_ahead():
    clock = Clock()
    meter = Meter(clock=clock)
    prepare = meter.time(clock.take(2.0))
    batches = meter.watch([prepare(0), prepare(1), prepare(2)])  # ready before the first is asked for
    next(batches)
    clock.take(4.0)()
    meter.count(8)
    assert meter.rates() == {"loader": 4.0, "device": 2.0, "both": 2.0, "waiting_share": 0.0}


def test_loading_in_the_background_is_no_waiting():
    """Loads of 10 ms behind steps of 30 ms; wide limits, since other programs run on the machine too."""
    meter = Meter()
    for _ in meter.watch(prefetch(range(10), meter.time(lambda _: time.sleep(0.01)))):
        time.sleep(0.03)
        meter.count(1)
    meter.finish()
    rates = meter.rates()
    assert rates["loader"] <= 100.0
    assert rates["both"] <= rates["device"] <= 1 / 0.03
    assert rates["waiting_share"] < 0.5
    assert rates["both"] == pytest.approx(rates["device"] * (1 - rates["waiting_share"]))


def test_nothing_measured_is_nought():
    nothing = {"loader": 0.0, "device": 0.0, "both": 0.0, "waiting_share": 0.0}
    meter = Meter()
    assert meter.rates() == nothing
    assert list(meter.watch(prefetch([], str))) == []
    meter.finish()
    assert {name: meter.rates()[name] for name in ("loader", "device", "both")} == dict.fromkeys(
        ("loader", "device", "both"), 0.0
    )
