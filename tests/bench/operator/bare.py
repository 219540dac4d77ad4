"""The floor, as a program: `python bare.py WRITES` watches FineTuneJobs, and writes for each what the operator wrote for one.

Nothing is decided, validated, cached or awaited: it reads a job's name, uid and version, and sends the recorded requests, with
the operator's own client and as many at a time as the operator has workers. Whoever makes the same objects from Python is not
faster than this.
"""

import asyncio
import json
import sys
import urllib.parse
from typing import Any

from finetune_operator import cluster

WORKERS = 16
NAME, UID = "@name@", "@uid@"
Raw = dict[str, Any]


async def write_all(api: cluster.Cluster, writes: list[dict[str, str]], job: Raw) -> None:
    meta = job["metadata"]
    version = meta["resourceVersion"]
    for one in writes:
        path, _, query = one["path"].replace(NAME, meta["name"]).partition("?")
        body = json.loads(one["body"].replace(NAME, meta["name"]).replace(UID, meta["uid"]))
        of_job = path.endswith("/status")
        if of_job and "resourceVersion" in body["metadata"]:
            body["metadata"]["resourceVersion"] = version
        answer = await api.request(one["method"], path, dict(urllib.parse.parse_qsl(query)), body, one["content"])
        if of_job:
            version = answer["metadata"]["resourceVersion"]


async def main(writes: list[dict[str, str]]) -> None:
    api = await cluster.Cluster.connect()
    jobs: asyncio.Queue[Raw] = asyncio.Queue()

    async def work() -> None:
        while True:
            await write_all(api, writes, await jobs.get())

    async def watch() -> None:
        reached, known = "", set[str]()
        async for items, version in api.pages("FineTuneJob", None):
            reached, known = version, known | {item["metadata"]["uid"] for item in items}
        print("watching", flush=True)
        while True:
            async for event, job in api.watch("FineTuneJob", None, "", reached):
                reached = job["metadata"]["resourceVersion"]
                if event == "ADDED" and job["metadata"]["uid"] not in known:
                    jobs.put_nowait(job)

    await asyncio.gather(watch(), *(work() for _ in range(WORKERS)))


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        asyncio.run(main(json.load(file)))
