"""Clients of a pool: each asks again when it has its answer. Where they send is what the pool's Service would choose."""

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator

from tests.trainer.gateway import double

from bench.scale import pods
from finetune_api import run


def ask(address: str, seconds: float = 60) -> int:
    """Status of a chat's answer by the base model. Raises OSError."""
    connection = http.client.HTTPConnection(address, run.SERVER_PORT, timeout=seconds)
    try:
        body = {"model": double.BASE, "messages": [{"role": "user", "content": "?"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@contextlib.contextmanager
def asking(of: pods.Pods, count: int) -> Iterator[dict[int, int]]:
    """So many clients; answers by their status, 0 for those that were interrupted."""
    over, seen, turn = threading.Event(), dict[int, int](), itertools.count()

    def client() -> None:
        while not over.is_set():
            front = of.front()
            try:
                status = ask(front[next(turn) % len(front)])
            except (OSError, http.client.HTTPException, ZeroDivisionError):
                status = 0
                time.sleep(1)
            seen[status] = seen.get(status, 0) + 1

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()
