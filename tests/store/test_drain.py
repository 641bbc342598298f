import math
import os
import signal
import threading
import time

import pytest

from lambda_hat.errors import ConfigError
from lambda_hat.store.drain import DEADLINE_VARIABLE, OUT_OF_TIME, SIGNALS, Drain, earliest_deadline


@pytest.fixture
def handlers():
    """Puts back what the test's process does on signals."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_reason_stays():
    drain = Drain()
    assert drain.reason is None and drain.time_left == math.inf
    drain.request("the disk is full")
    drain.request("its driver has ended")
    assert drain.reason == "the disk is full"


def test_the_clock_asks_for_it():
    drain = Drain(time.time() + 100)
    assert drain.reason is None and 99 < drain.time_left <= 100
    drain.deadline = time.time() - 0.001
    assert drain.reason == OUT_OF_TIME
    drain.deadline = time.time() + 100
    assert drain.reason == OUT_OF_TIME, "it is never taken back"


def test_what_is_heard_becomes_the_reason():
    told = [None, "rank 0 drains", "something else"]
    drain = Drain()
    drain.listen(lambda: told.pop(0))
    assert [drain.reason, drain.reason, drain.reason] == [None, "rank 0 drains", "rank 0 drains"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_each_signal_asks_for_it(handlers, number):
    drain = Drain()
    drain.on_signals()
    os.kill(os.getpid(), number)
    assert drain.reason == f"{number.name} came"


def test_a_second_interrupt_interrupts(handlers):
    drain = Drain()
    drain.on_signals()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert drain.reason == "SIGINT came"


def test_a_signal_reaches_the_main_thread_from_another(handlers):
    drain = Drain()
    drain.on_signals()
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR2)).start()
    deadline = time.monotonic() + 10
    while drain.reason is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert drain.reason == "SIGUSR2 came"


def test_the_earlier_deadline_counts():
    assert earliest_deadline(None, {}) is None
    assert earliest_deadline(5.0, {}) == 5.0
    assert earliest_deadline(None, {DEADLINE_VARIABLE: "7.5"}) == 7.5
    assert earliest_deadline(5.0, {DEADLINE_VARIABLE: "7.5"}) == 5.0
    for bad in ({DEADLINE_VARIABLE: "noon"}, {DEADLINE_VARIABLE: ""}, {DEADLINE_VARIABLE: "nan"}):
        with pytest.raises(ConfigError, match="seconds since the epoch"):
            earliest_deadline(5.0, bad)
