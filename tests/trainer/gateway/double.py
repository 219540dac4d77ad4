"""A double of vLLM at its HTTP seam, and of the operator's index: on real sockets, with the behaviour that was seen of vLLM 0.32.

The engine answers with what its loaded adapter's files say, so that a wrong adapter shows in the answer.
"""

import asyncio
import collections
import gzip
import json
import pathlib
import time
from typing import Any

from aiohttp import web

BASE = "tiny-base"
METRICS = """\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny-base"} 7.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting, by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny-base",reason="capacity"} 7.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny-base"} 0.25
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="8",running_lora_adapters="0123",waiting_lora_adapters=""} 1.7e+09
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="2048"} 1.0
# HELP process_open_fds Number of open file descriptors.
# TYPE process_open_fds gauge
process_open_fds 41.0
"""
"""An extract of what vLLM 0.32 exports."""
STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}


class Engine:
    """What vLLM does with adapters and requests. `gate`: while it is clear, answers wait."""

    def __init__(self, *, max_rank: int = 16, in_memory: int = 64) -> None:
        self.max_rank, self.in_memory = max_rank, in_memory
        self.adapters: dict[str, str] = {}
        self.memory: collections.OrderedDict[str, str] = collections.OrderedDict()
        self.calls: list[tuple[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = 0
        self.tokens, self.pause, self.text = 3, 0.0, ""
        self.finish = "stop"
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.lingers = 0.0
        """Seconds from the last line of a stream to its end."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/load_lora_adapter", self.load)
        app.router.add_post("/v1/unload_lora_adapter", self.unload)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(status=200)

    async def metrics(self, request: web.Request) -> web.Response:
        """As by prometheus_client's application."""
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=gzip.compress(METRICS.encode()), headers={"Content-Encoding": "gzip"})
        return web.Response(text=METRICS)

    async def models(self, _: web.Request) -> web.Response:
        names = [BASE, *self.adapters]
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, path = body["lora_name"], pathlib.Path(body["lora_path"])
        self.calls.append(("load", name))
        if name in self.adapters:
            return problem(400, f"The lora adapter '{name}' has already been loaded.")
        if not (path / "adapter_config.json").is_file():
            return problem(404, f"Loading lora {name} failed: No adapter found for {path}")
        config = json.loads((path / "adapter_config.json").read_text())
        if config["r"] > self.max_rank:
            return problem(500, f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_rank}.")
        self.adapters[name] = str(path)
        self._use(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    def _use(self, name: str) -> str:
        """What the adapter's weights say, read from the disk where the memory has dropped them."""
        if name not in self.memory:
            self.memory[name] = (pathlib.Path(self.adapters[name]) / "adapter_model.safetensors").read_text()
        self.memory.move_to_end(name)
        while len(self.memory) > self.in_memory:
            self.memory.popitem(last=False)
        return self.memory[name]

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name))
        if name not in self.adapters:
            return problem(404, f"The lora adapter '{name}' cannot be found.")
        if name not in self.memory:
            return problem(500, f"Failed to remove lora adapter '{name}' from the engine.")
        del self.adapters[name], self.memory[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self.answer(request, "chat.completion")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        return await self.answer(request, "text_completion")

    async def answer(self, request: web.Request, kind: str) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        name = body["model"]
        if name != BASE and name not in self.adapters:
            return problem(404, f"The model `{name}` does not exist.")
        if body.get("temperature", 0) > 2:
            return problem(400, f"temperature must be at most 2 for {name}")
        text = self.text or ("base" if name == BASE else self._use(name))
        try:
            if body.get("stream"):
                return await self.stream(request, body, kind, name, text)
            await self.gate.wait()
            await asyncio.sleep(self.pause)
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled += 1
            raise
        content = {"text": text} if kind == "text_completion" else {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, **content, "finish_reason": self.finish}
        usage = {"prompt_tokens": 7, "completion_tokens": self.tokens, "total_tokens": 7 + self.tokens}
        return web.json_response({"id": "1", "object": kind, "model": name, "choices": [choice], "usage": usage})

    async def stream(
        self, request: web.Request, body: dict[str, Any], kind: str, name: str, text: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=STREAM)
        await response.prepare(request)
        pieces = (
            [text[at :: self.tokens] for at in range(self.tokens)]
            if self.tokens > len(text)
            else split(text, self.tokens)
        )
        for number, piece in enumerate(pieces):
            content = {"text": piece} if kind == "text_completion" else {"delta": {"content": piece}}
            last = number == len(pieces) - 1
            choice = {"index": 0, **content, "finish_reason": self.finish if last else None}
            await event(response, {"id": "1", "object": f"{kind}.chunk", "model": name, "choices": [choice]})
            if self.broken:
                request.transport.abort()
                return response
            await asyncio.sleep(self.pause)
            await self.gate.wait()
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": self.tokens}
            await event(response, {"id": "1", "object": f"{kind}.chunk", "model": name, "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        await asyncio.sleep(self.lingers)
        await response.write_eof()
        return response


def split(text: str, parts: int) -> list[str]:
    size = max(1, -(-len(text) // parts))
    return [text[at : at + size] for at in range(0, len(text), size)]


async def event(response: web.StreamResponse, document: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(document).encode() + b"\n\n")


def problem(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


class Operator:
    """The index: long polls, 503 where it is not the leader."""

    def __init__(self, wait: float = 25.0) -> None:
        self.index: Any = None
        self.status = 200
        self.polls = 0
        self._wait = wait
        self._changed = asyncio.Condition()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/pools/{namespace}/{name}", self.get)
        return app

    async def set(self, index: Any) -> None:
        self.index = index
        async with self._changed:
            self._changed.notify_all()

    async def get(self, request: web.Request) -> web.Response:
        self.polls += 1
        if self.status != 200 or self.index is None:
            return web.Response(status=self.status if self.status != 200 else 503, text="not the leader")
        after, end = request.query.get("after"), time.monotonic() + self._wait
        while isinstance(self.index, dict) and after == self.index.get("etag"):
            try:
                async with asyncio.timeout(end - time.monotonic()), self._changed:
                    await self._changed.wait()
            except TimeoutError:
                return web.Response(status=304)
        return web.json_response(self.index) if isinstance(self.index, dict) else web.Response(body=self.index)
