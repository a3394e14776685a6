"""Sessions: keys nobody can guess or choose, an end after a while, and nothing held after it."""

import threading

import pytest

from dia.serve.limits import Refused
from dia.serve.sessions import IDLE, MOST, Sessions, plain_reader


class Held:
    """Something that is held."""

    def __init__(self):
        self.closed = threading.Event()

    def close(self):
        self.closed.set()


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_a_session_holds_one_of_each_kind_until_it_ends(clock):
    sessions = Sessions(clock)
    session = sessions.open("Dr. Ö")
    held = session.hold(Held, Held)
    assert session.hold(Held, Held) is held
    assert sessions.find(session.key) is session
    sessions.end(session.key)
    assert held.closed.wait(60)
    assert sessions.find(session.key) is None
    with pytest.raises(Refused, match="session"):  # a request that was on its way makes nothing new
        session.hold(Held, Held)


def test_it_ends_without_a_sign_of_life_and_not_with_one(clock):
    sessions = Sessions(clock)
    quiet, lively = sessions.open(), sessions.open()
    held = quiet.hold(Held, Held)
    clock.now = IDLE - 1
    assert sessions.find(lively.key)
    clock.now = IDLE + 1
    sessions.sweep()
    assert held.closed.wait(60)
    assert sessions.find(quiet.key) is None
    assert sessions.find(lively.key) is lively


def test_too_many_end_those_untouched_longest(clock):
    sessions = Sessions(clock)
    first, second = sessions.open(), sessions.open()
    assert sessions.find(first.key)
    for _ in range(MOST - 1):
        sessions.open()
    assert sessions.find(second.key) is None
    assert sessions.find(first.key) is first


def test_all_end_with_the_service(clock):
    sessions = Sessions(clock)
    held = [sessions.open().hold(Held, Held) for _ in range(3)]
    sessions.close()
    assert all(one.closed.is_set() for one in held)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("  A. B. ", "A. B."), ("a\nb\x1b[1m\u202e", "ab[1m"), ("é" * 200, "é" * 100), ("\0\n ", "")],
)
def test_a_reader_s_name_is_one_printable_line(given, shown):
    assert plain_reader(given) == shown
