"""How often one object may be written."""

import datetime

from finetune_operator import pace

START = datetime.datetime(2026, 5, 4, 12, tzinfo=datetime.UTC)
PLACE = ("Deployment", "ml", "a")


def after(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def test_an_object_waits_after_its_last_write_of_a_minute() -> None:
    found = pace.Pace()
    for number in range(pace.MOST):
        assert found.wait(PLACE, after(number)) == 0
        found.note(PLACE, after(number))
    assert found.wait(PLACE, after(20)) == 40
    assert found.wait(("Deployment", "ml", "b"), after(20)) == 0
    assert found.wait(PLACE, after(60)) == 0


def test_objects_that_were_not_written_lately_are_forgotten() -> None:
    found = pace.Pace()
    for number in range(pace.REMEMBERED + 1):
        found.note(number, after(0))
    found.note(PLACE, after(120))
    assert len(found._times) == 1
