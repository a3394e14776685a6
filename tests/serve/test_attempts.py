"""Wrong tokens: how many a client may send, and who is heard meanwhile. The clock is the test's."""

import logging

import pytest

from dia.serve import attempts as module
from dia.serve.attempts import ALL, ALL_EVERY, LINE_EVERY, OWN, OWN_EVERY, Attempts
from dia.serve.limits import Refused

STRANGER, READER = ("10.0.0.7", 4000), ("10.0.0.8", 5000)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def attempts(clock):
    return Attempts(clock)


def guess(attempts, client):
    """Whether a wrong token was looked at."""
    try:
        attempts.begin(client)
    except Refused:
        return False
    attempts.wrong(client)
    return True


def show(attempts, client):
    attempts.begin(client)
    attempts.right(client)


def test_a_client_has_so_many_guesses_and_then_one_every_so_often(attempts, clock):
    assert sum(guess(attempts, STRANGER) for _ in range(500)) == OWN
    for port in range(50):  # another connection is no other client
        assert not guess(attempts, (STRANGER[0], port))
    clock.now += 100 * OWN_EVERY
    assert sum(guess(attempts, STRANGER) for _ in range(500)) == OWN
    seen = 0
    for _ in range(100):
        clock.now += OWN_EVERY / 4
        seen += guess(attempts, STRANGER)
    assert seen == 25


def test_all_clients_together_have_a_limit_which_one_without_guilt_passes(attempts, clock):
    strangers = [(f"10.1.{i // 250}.{i % 250}", 1) for i in range(ALL)]
    assert all(guess(attempts, client) for client in strangers)
    assert not any(guess(attempts, client) for client in strangers)
    show(attempts, READER)  # never seen before
    assert guess(attempts, ("10.9.9.9", 1))
    assert not guess(attempts, ("10.9.9.9", 1))
    clock.now += 5 * ALL_EVERY
    assert sum(guess(attempts, client) for client in strangers) == 5


def test_the_right_token_costs_nothing_and_its_connection_is_heard_beside_a_stranger(attempts):
    for _ in range(10 * ALL):
        show(attempts, READER)
    assert sum(guess(attempts, (READER[0], 1)) for _ in range(500)) == OWN  # at the same address
    for _ in range(100):
        show(attempts, READER)
    with pytest.raises(Refused) as refused:
        attempts.begin((READER[0], 2))
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "2"})
    attempts.begin(READER)
    attempts.wrong(READER)  # whoever has the port now
    assert not guess(attempts, READER)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True), ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.7", "10.0.0.7", True), ("10.0.0.7", "10.0.0.8", False), ("a name", "a name", True),
    ],
)  # fmt: skip
def test_addresses_that_one_client_can_choose_are_one_client(attempts, one, other, same):
    while guess(attempts, (one, 1)):
        pass
    assert guess(attempts, (other, 1)) != same


def test_what_is_remembered_is_bounded(attempts, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 5)
    for i in range(50):
        show(attempts, (f"10.0.1.{i}", i))
    assert len(attempts._own) == len(attempts._right) == 5


def test_a_flood_leaves_few_lines_and_they_count_all(attempts, clock, caplog):
    caplog.set_level(logging.WARNING, "dia.serve")
    for _ in range(1000):
        guess(attempts, STRANGER)
        clock.now += LINE_EVERY / 400
    attempts.close()
    attempts.close()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4  # at once, after 10 and 20 seconds, and at the end
    assert lines[0] == "wrong tokens: 1; the last from 10.0.0.7"
    read = sum(int(line.split()[2].rstrip(";,")) for line in lines)
    unread = sum(int(line.split(", ")[1].split()[0]) for line in lines[1:])
    assert read + unread == 1000
    assert read == OWN + 12  # 25 seconds


def test_what_a_client_calls_itself_is_one_short_line(attempts, caplog):
    caplog.set_level(logging.WARNING, "dia.serve")
    guess(attempts, ("a\nb\x1b[2J" + "c" * 1000, 1))
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 120
