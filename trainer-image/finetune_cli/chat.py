"""`finetune chat`: a question to a served model, or a conversation with it, for a look at what was trained.

The model is named by its job, which `kubectl` finds and forwards a port to with the user's own rights, or by an address.
"""

import argparse
import contextlib
import ipaddress
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from finetune_cli import answer, documents
from finetune_trainer.process import http

KEY = "FINETUNE_API_KEY"
"""The environment variable with the key, where there is no file of it. An argument could be read in the list of processes."""

FORWARD_SECONDS, ANSWER_SECONDS, BYTES = 20.0, 300.0, 16 << 20

HELP = "An empty line or Ctrl-D ends, Ctrl-C stops an answer, /new begins a new conversation."

Message = dict[str, str]


def chat(options: argparse.Namespace) -> answer.Answer:
    """One question where there is one, on the command line or in a pipe; else a conversation in the terminal.

    Raises:
        documents.Invalid: nothing serves under this name or address, or it refuses the request
    """
    question = options.question
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is not None and not question.strip():
        raise _invalid("the question is empty: write it after the name, or send it through a pipe")
    if question is None and options.output == "json":
        raise _invalid("--output json needs a question")
    with (
        _place(options) as (url, name),
        http.Server(
            url, _key(options, url), seconds=ANSWER_SECONDS, size=BYTES, outside=_is_address(options.target)
        ) as server,
    ):
        model = options.model or name or _only_model(server)
        settings = {"model": model, **_settings(options)}
        history: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
        if question is None:
            _converse(server, settings, history)
            return answer.Answer(command="chat", exit_code=answer.Exit.DONE)
        begun = time.monotonic()
        history.append({"role": "user", "content": question})
        text = "".join(_pieces(server, settings, history))
        reply = answer.Reply(model=model, text=text, seconds=round(time.monotonic() - begun, 3))
        return answer.Answer(command="chat", exit_code=answer.Exit.DONE, reply=reply)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    given = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    return {name: value for name, value in given.items() if value is not None}


def _key(options: argparse.Namespace, url: str) -> str:
    """The key to send to this URL; empty without one."""
    file: pathlib.Path | None = options.key_file
    try:
        key = (os.environ.get(KEY, "") if file is None else file.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(f"--key-file {file}: {error}") from None
    if key and not options.plain_http and _in_the_clear(url):
        source = f"the environment variable {KEY}" if file is None else f"--key-file {file}"
        raise _invalid(
            f"the key of {source} would cross the network unencrypted, to {url}: use an https:// address or the name of the job, "
            "which kubectl reaches by TLS; or allow it by --plain-http, on a network that you trust"
        )
    return key


def _in_the_clear(url: str) -> bool:
    """Whether others on the network can read what is sent: without TLS, to another machine."""
    address = urllib.parse.urlsplit(url)
    if address.scheme.lower() == "https":
        return False
    host = address.hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _only_model(server: http.Server) -> str:
    listed = _asked(lambda: server.ask("/v1/models"))
    names = [str(one.get("id")) for one in listed.get("data", ())] if isinstance(listed, dict) else []
    if len(names) == 1:
        return names[0]
    raise _invalid(f"the server has {len(names)} models: choose one by --model: {', '.join(sorted(names)) or 'none'}")


# --- what is asked ---


def _pieces(server: http.Server, settings: dict[str, Any], history: list[Message]) -> Iterator[str]:
    """The answer, piece by piece. Raises documents.Invalid."""
    events = server.events("/v1/chat/completions", {**settings, "messages": history, "stream": True})
    while (event := _asked(lambda: next(events, None))) is not None:
        if problem := event.get("error"):
            raise _invalid(str(problem.get("message", problem) if isinstance(problem, dict) else problem))
        for choice in event.get("choices") or ():
            if text := (choice.get("delta") or {}).get("content"):
                yield str(text)


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except http.Failed as failed:
        hint = {
            401: f"; send the key of a client by --key-file FILE, or in {KEY}",
            404: "; GET /v1/models lists the models, --model chooses one",
        }.get(failed.status or 0, "")
        raise _invalid(f"the server answers: {failed}{hint}") from None


def printable(text: str) -> str:
    """Without what would steer a terminal: control characters but new lines and tabs, and changes of the writing direction."""
    return "".join(
        letter
        for letter in text
        if letter in "\n\t" or not (unicodedata.category(letter) == "Cc" or letter in _DIRECTIONS)
    )


_DIRECTIONS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def _converse(server: http.Server, settings: dict[str, Any], history: list[Message]) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrows and earlier lines in input()
    print(f"{settings['model']}. {HELP}")
    system = history[:]
    while True:
        try:
            question = input("> ")
        except EOFError:
            print()
            return
        if not question.strip():
            return
        if question.strip() == "/new":
            history[:] = system
            continue
        reply = _answered(server, settings, [*history, {"role": "user", "content": question}])
        if reply is not None:
            history += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def _answered(server: http.Server, settings: dict[str, Any], messages: list[Message]) -> str | None:
    """Prints the answer as it comes; None where there is none to go back to."""
    text = ""
    try:
        for piece in _pieces(server, settings, messages):
            print(printable(piece), end="", flush=True)
            text += piece
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    except documents.Invalid as invalid:
        print("\n".join(problem.message for problem in invalid.problems), file=sys.stderr)
        return None
    print()
    return text


# --- where it is ---


@contextlib.contextmanager
def _place(options: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """The server's URL without /v1, and the name of the model where the job says it."""
    target = options.target
    if _is_address(target):
        yield target.rstrip("/").removesuffix("/v1"), None
        return
    if shutil.which("kubectl") is None:
        raise _invalid(
            f"`{target}` is looked up with kubectl, which is not installed; or give the server's address, http://..."
        )
    where = ["--namespace", options.namespace] if options.namespace else []
    found = _kubectl("get", "finetunejobs.finetune.dev", target, *where, "--output=json")
    status = found.get("status") or {}
    served = status.get("deployment")
    if not served:
        name = f"{found['metadata']['namespace']}/{target}"
        ready: dict[str, Any] = next((one for one in status.get("conditions", ()) if one.get("type") == "Ready"), {})
        seen = " ".join(filter(None, (status.get("phase") or "it has just been created", ready.get("message"))))
        raise _invalid(f"nothing serves {name} yet: {seen}")
    endpoint = urllib.parse.urlsplit(served["endpoint"])
    service, namespace = str(endpoint.hostname).split(".")[:2]
    with _forwarded(service, namespace, endpoint.port or 80) as port:
        yield f"http://127.0.0.1:{port}", served["model"]


def _is_address(target: str) -> bool:
    return "://" in target


def _kubectl(*words: str) -> dict[str, Any]:
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True)
    if done.returncode:
        raise _invalid(f"kubectl {words[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return dict(json.loads(done.stdout))


@contextlib.contextmanager
def _forwarded(service: str, namespace: str, port: int) -> Iterator[int]:
    """A free port of this machine that leads to a Service, until the end."""
    words = ["port-forward", f"service/{service}", f":{port}", "--namespace", namespace, "--address", "127.0.0.1"]
    # In a group of its own: Ctrl-C, which stops an answer, would end it, too.
    with subprocess.Popen(
        ["kubectl", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            yield _port(lines)
        finally:
            process.terminate()
            reader.join()


def _read(stream: Any, lines: "queue.SimpleQueue[str]") -> None:
    """All lines, and an empty one at the end: kubectl would stop at a full pipe."""
    for line in stream:
        lines.put(line)
    lines.put("")


def _port(lines: "queue.SimpleQueue[str]") -> int:
    """Of `Forwarding from 127.0.0.1:PORT -> 8000`."""
    until, seen = time.monotonic() + FORWARD_SECONDS, ""
    while True:
        try:
            line = lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise _invalid(f"kubectl port-forward: no port within {FORWARD_SECONDS:.0f} s {seen.strip()}") from None
        if line.startswith("Forwarding from 127.0.0.1:"):
            return int(line.split(":")[1].split()[0])
        if not line:
            raise _invalid(f"kubectl port-forward: {seen.strip() or 'it ended'}")
        seen += line


def _invalid(message: str) -> documents.Invalid:
    return documents.Invalid([answer.Problem(message=message)])
