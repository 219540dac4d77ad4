"""When servers may end: for a ServingPool and a job alike."""

import dataclasses
import datetime

import pytest

from finetune_api import deployment, serving
from finetune_operator.decide import idle
from finetune_operator.observe import pools

SINCE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
STATE = serving.State(pool="ml/chat", etag="1", engine_ready=False)


def later(seconds: float) -> datetime.datetime:
    return SINCE + datetime.timedelta(seconds=seconds)


SEEN = idle.Seen(
    idle=deployment.Idle(after="5m"),
    asleep_since=SINCE,
    now=later(16),
    servers=[pools.Reading(STATE, last_request=later(-300), read_at=later(1))],
    activators=[pools.Reading(STATE, read_at=later(15))],
    settled=True,
    ended=False,
    needs="",
    etag="1",
)


def test_servers_end_once_every_pod_was_read() -> None:
    assert idle.find(SEEN).ends
    assert idle.find(SEEN).again is None


@pytest.mark.parametrize(
    ("servers", "activators"),
    [
        ({"problem": "no answer"}, {}),
        ({"read_at": None}, {}),
        ({"read_at": later(-1)}, {}),
        ({}, {"problem": "no answer"}),
        ({}, {"read_at": None}),
        ({}, {"read_at": later(14.9)}),
    ],
)
def test_a_pod_that_was_not_read_late_enough_is_waited_for(
    servers: dict[str, object], activators: dict[str, object]
) -> None:
    (server,), (activator,) = SEEN.servers, SEEN.activators
    seen = dataclasses.replace(
        SEEN,
        servers=[dataclasses.replace(server, **servers)],  # type: ignore[arg-type]
        activators=[dataclasses.replace(activator, **activators)],  # type: ignore[arg-type]
    )
    found = idle.find(seen)
    assert (found.asleep_since, found.ends, found.again) == (SINCE, False, idle.AGAIN)
    assert idle.find(dataclasses.replace(seen, ended=True)).ends, "servers that ended are not started for it"


def test_servers_stay_where_no_pod_takes_their_requests() -> None:
    found = idle.find(dataclasses.replace(SEEN, activators=[]))
    assert (found.asleep_since, found.ends, found.activator) == (None, False, False)
    assert idle.find(dataclasses.replace(SEEN, activators=[], servers=[], ended=True)).ends
