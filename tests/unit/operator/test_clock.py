"""The API server's clock: told by its answers, carried on by the monotonic one, deaf to this machine's."""

import datetime
import email.utils

from finetune_operator import clock

NOON = datetime.datetime(2026, 5, 4, 12, 0, 0, tzinfo=datetime.UTC)


class Machine:
    """A monotonic clock, and an API server whose Date is cut to seconds."""

    def __init__(self) -> None:
        self.passed, self.server = 1000.0, NOON
        self.clock = clock.Clock(lambda: self.passed)

    def wait(self, seconds: float) -> None:
        self.passed += seconds
        self.server += datetime.timedelta(seconds=seconds)

    def answer(self) -> None:
        self.clock.observe(email.utils.format_datetime(self.server.replace(microsecond=0), usegmt=True))

    @property
    def behind(self) -> float:
        return (self.server - self.clock.now()).total_seconds()


def test_before_any_response_the_local_clock_is_used() -> None:
    assert abs((clock.Clock().now() - datetime.datetime.now(datetime.UTC)).total_seconds()) < 60


def test_the_clock_advances_between_answers() -> None:
    machine = Machine()
    machine.answer()
    machine.wait(90.5)
    assert machine.behind == 0


def test_every_answer_brings_it_nearer_and_none_takes_it_back() -> None:
    machine = Machine()
    machine.wait(0.9)
    machine.answer()
    last = machine.clock.now()
    worst = 2.0
    for _ in range(50):
        machine.wait(0.37)
        machine.answer()
        assert machine.clock.now() >= last
        assert 0 <= machine.behind <= worst
        last, worst = machine.clock.now(), machine.behind
    assert worst < 0.05


def test_the_clock_of_a_suspended_virtual_machine_is_corrected_by_the_next_response() -> None:
    machine = Machine()
    machine.answer()
    machine.server += datetime.timedelta(hours=8)  # and the monotonic clock stood still
    machine.answer()
    assert 0 <= machine.behind <= 1


def test_a_clock_of_the_api_server_that_is_put_back_is_followed() -> None:
    machine = Machine()
    machine.answer()
    machine.server -= datetime.timedelta(hours=1)
    machine.answer()
    assert abs(machine.behind) <= 1


def test_an_answer_without_a_date_changes_nothing() -> None:
    machine = Machine()
    machine.answer()
    for date in (None, "", "yesterday"):
        machine.clock.observe(date)
    assert machine.behind == 0
