"""Clients that ask the pool for one name after another, and compare every answer."""

import contextlib
import dataclasses
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

from bench.pool.fleet import KEY, Fleet, server
from support.site import Site

QUESTION = [{"role": "user", "content": "The router number 3 shines grey. Which colour?"}]


@dataclasses.dataclass
class Tally:
    """What clients saw."""

    answers: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    refused: Counter[int] = dataclasses.field(default_factory=Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)


def ask(address: str, name: str, *, stream: bool = False) -> tuple[int, str, float]:
    """Status, text, and seconds to the whole answer (or, streaming, to its first byte)."""
    body = {"model": name, "messages": QUESTION, "max_tokens": 8, "temperature": 0, "stream": stream}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"http://{address}:8000/v1/chat/completions", json.dumps(body).encode(), headers)
    begun = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            if stream:
                answer.readline()
                seconds = time.monotonic() - begun
                answer.read()
                return answer.status, "", seconds
            return answer.status, json.load(answer)["choices"][0]["message"]["content"], time.monotonic() - begun
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")[:200], time.monotonic() - begun
    except OSError as error:
        return 0, str(error), time.monotonic() - begun


class Clients:
    """Threads that ask random names until the number of answers is reached."""

    def __init__(self, site: Site, fleet: Fleet, wanted: int) -> None:
        self._site, self._fleet, self._wanted = site, fleet, wanted
        self.tally, self._lock = Tally(), threading.Lock()
        self._address = server(site)["status"]["podIP"]

    def done(self) -> bool:
        return self.tally.answers >= self._wanted

    def run(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self.done():
            name = dice.choice(self._fleet.names())
            asked = time.monotonic()
            status, text, seconds = ask(self._address, name)
            allowed = self._fleet.answers(name, asked)
            with self._lock:
                self._note(name, status, text, seconds, allowed)
            if status != 200:
                time.sleep(1)
                with contextlib.suppress(Exception):
                    self._address = server(self._site)["status"].get("podIP", self._address)

    def _note(self, name: str, status: int, text: str, seconds: float, allowed: set[str] | None) -> None:
        if status != 200:
            # a name that was just removed is unknown, and so it should be
            self.tally.refused[status if allowed is not None else -status] += 1
            return
        self.tally.answers += 1
        self.tally.seconds.append(seconds)
        if allowed is not None and text not in allowed:
            self.tally.wrong.append(f"{name}: {text!r}, {self._fleet.whose(name, text)}")
