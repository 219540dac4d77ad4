"""vLLM on loopback: whether it answers, which adapters it has loaded, load one, unload one."""

import pathlib
import re
from collections.abc import Sequence

import aiohttp

from finetune_api import metrics
from finetune_trainer.process import errors

SECONDS, LOAD_SECONDS = 5.0, 120.0


class Away(Exception):
    """The engine does not answer: it starts, or was killed."""


class Refused(Exception):
    """The engine answers, and does not load this adapter."""


class Engine:
    """The engine's own API. Adapters are named by their sha256, and never loaded in place."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session

    async def healthy(self) -> bool | None:
        """None where it does not answer in time, as one that is busy may."""
        try:
            async with self.session.get(f"{self.url}/health", timeout=aiohttp.ClientTimeout(SECONDS)) as answer:
                return answer.status == 200
        except TimeoutError:
            return None
        except (aiohttp.ClientError, OSError):
            return False

    async def loaded(self) -> set[str]:
        """Names of all models that it lists. Raises Away."""
        try:
            async with self.session.get(f"{self.url}/v1/models", timeout=aiohttp.ClientTimeout(SECONDS)) as answer:
                listed = await answer.json(content_type=None)
                return {str(model["id"]) for model in listed["data"]}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
            raise Away(errors.describe(error)) from None

    async def metrics(self, names: Sequence[str] = metrics.ENGINE_LOAD) -> bytes:
        """Those of its metrics, as Prometheus reads them; none where it does not answer."""
        wanted = re.compile(rf"(# (HELP|TYPE) )?({'|'.join(map(re.escape, names))})[ {{]")
        timeout, plain = aiohttp.ClientTimeout(SECONDS), {"Accept-Encoding": "identity"}
        try:
            async with self.session.get(f"{self.url}/metrics", headers=plain, timeout=timeout) as answer:
                lines = (await answer.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return b""
        return "".join(f"{line}\n" for line in lines if wanted.match(line)).encode()

    async def load(self, sha256: str, folder: pathlib.Path) -> None:
        """Raises Refused or Away. One that is loaded already (400) is: adapters never change under their name."""
        status, text = await self._post("load_lora_adapter", {"lora_name": sha256, "lora_path": str(folder)})
        if status != 200 and not (status == 400 and "already" in text):
            raise Refused(f"HTTP {status}: {text[:300]}")

    async def unload(self, sha256: str) -> None:
        """Raises Away. vLLM answers 404 for one that is not loaded, and 500 for one that its memory has dropped meanwhile, whose
        name it keeps: neither is used again, so both are as good."""
        await self._post("unload_lora_adapter", {"lora_name": sha256})

    async def _post(self, verb: str, body: dict[str, str]) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(LOAD_SECONDS)
        try:
            async with self.session.post(f"{self.url}/v1/{verb}", json=body, timeout=timeout) as answer:
                return answer.status, (await answer.content.read(2000)).decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Away(errors.describe(error)) from None
