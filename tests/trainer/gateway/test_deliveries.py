"""How adapters come into a pool, onto all its pods, into the engine, and out again."""

import asyncio
import errno
import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
from typing import Any

import aiohttp
import pytest
from tests.trainer.gateway import double
from tests.trainer.gateway.conftest import POOL, Folder, World

from finetune_api import reasons
from finetune_trainer.gateway import delivery, index, loading, volume
from finetune_trainer.process import errors
from support import ports


def hidden(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".incoming-")]


def tar(*files: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, **more: Any) -> bytes:
    """A tar file as anybody could make one."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=more.pop("format", tarfile.USTAR_FORMAT)) as made:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind if name != "manifest.json" else tarfile.REGTYPE
            info.linkname = more.get("linkname", "")
            made.addfile(info, io.BytesIO(content))
    return target.getvalue()


def forged(
    world: World, files: dict[str, bytes], listed: list[dict[str, Any]] | None = None, **held: Any
) -> tuple[Folder, bytes]:
    """An adapter whose manifest really has the hash in the index, with any content: (folder, manifest)."""
    found = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    ]
    manifest = json.dumps({"files": listed if listed is not None else found}).encode()
    sha256 = hashlib.sha256(manifest).hexdigest()
    size = sum(len(data) for data in files.values())
    entry = {"namespace": "ml", "job": "job", "revision": "r", "sha256": sha256, "rank": 8, "bytes": size, **held}
    folder = Folder(world.folder, sha256, entry)
    world.hold(folder)
    return folder, manifest


GOOD = {
    "adapter_model.safetensors": b"weights",
    "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 8, "base_model_name_or_path": "some-base"}).encode(),
}


async def test_a_delivered_adapter_names_the_engines_base_model(world: World) -> None:
    desk = world.adapter("x", note_txt="of the job")
    world.hold(desk)
    pod = await world.pod()
    await world.delivered(pod, desk)
    folder = pod.volume / desk.sha256
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "/models/base"
    assert (folder / "note.txt").read_text() == "of the job"
    assert pod.engine.adapters == {desk.sha256: str(folder)}
    assert not hidden(pod.volume)


async def test_an_adapter_that_is_not_in_the_index_is_not_taken(world: World) -> None:
    pod = await world.pod()
    await world.delivered(pod)
    status, text = await world.put(pod, world.adapter("x"))
    assert (status, json.loads(text)["error"]["code"]) == (404, "not_in_index")


HOSTILE = {
    "a path upwards": lambda m: tar(("manifest.json", m), ("../escaped.json", b"weights")),
    "an absolute path": lambda m: tar(("manifest.json", m), ("/tmp/escaped.json", b"weights")),
    "a link": lambda m: tar(
        ("manifest.json", m), ("adapter_model.safetensors", b""), kind=tarfile.SYMTYPE, linkname="/etc/passwd"
    ),
    "a hard link": lambda m: tar(
        ("manifest.json", m), ("adapter_model.safetensors", b""), kind=tarfile.LNKTYPE, linkname="../x"
    ),
    "a device": lambda m: tar(("manifest.json", m), ("adapter_model.safetensors", b""), kind=tarfile.CHRTYPE),
    "a long name's extension": lambda m: tar(
        ("manifest.json", m), ("x" * 120 + ".json", b"1"), format=tarfile.GNU_FORMAT
    ),
    "a pax extension": lambda m: tar(("manifest.json", m), ("ä" * 60 + ".json", b"1"), format=tarfile.PAX_FORMAT),
    "a file that is not listed": lambda m: tar(("manifest.json", m), *GOOD.items(), ("more.json", b"1")),
    "a file twice": lambda m: tar(("manifest.json", m), *GOOD.items(), *GOOD.items()),
    "a missing file": lambda m: tar(("manifest.json", m), *list(GOOD.items())[:1]),
    "another size": lambda m: tar(("manifest.json", m), ("adapter_model.safetensors", b"more than weights")),
    "another content": lambda m: tar(("manifest.json", m), ("adapter_model.safetensors", b"WEIGHTS")),
    "another manifest": lambda m: tar(("manifest.json", m + b" "), *GOOD.items()),
    "no manifest first": lambda m: tar(*GOOD.items(), ("manifest.json", m)),
    "nothing": lambda _: b"",
    "no tar file": lambda m: b"x" * 4096,
    "an early end": lambda m: tar(("manifest.json", m), *GOOD.items())[:1500],
    "an enormous manifest": lambda m: tar(("manifest.json", b" " * (volume.MANIFEST_BYTES + 1))),
}


@pytest.mark.parametrize("attack", HOSTILE)
async def test_a_hostile_tar_file_leaves_nothing(world: World, attack: str) -> None:
    folder, manifest = forged(world, GOOD)
    pod = await world.pod()
    await world.delivered(pod)
    status, text = await world.put(pod, folder, HOSTILE[attack](manifest))
    assert status == 422, text
    assert json.loads(text)["error"]["message"]
    assert [path.name for path in pod.volume.iterdir() if path.name != ".index.json"] == []
    assert not (world.folder / "escaped.json").exists()
    assert not os.path.exists("/tmp/escaped.json")  # noqa: ASYNC240
    assert (await world.put(pod, folder, tar(("manifest.json", manifest), *GOOD.items())))[0] == 201, (
        "the true one is taken"
    )


BAD_CONTENT = {
    "a pickle": {**GOOD, "adapter_model.bin": b"1"},
    "a program": {**GOOD, "setup.py": b"1"},
    "no weights": {"adapter_config.json": GOOD["adapter_config.json"]},
    "no configuration": {"adapter_model.safetensors": b"weights"},
    "a folder": {**GOOD, "more/files.json": b"1"},
    "a hidden file": {**GOOD, ".adapter_config.json": b"1"},
    "a manifest in the manifest": {**GOOD, "manifest.json": b"1"},
    "a rank above the pool's": {**GOOD, "adapter_config.json": b'{"peft_type": "LORA", "r": 32}'},
    "no rank": {**GOOD, "adapter_config.json": b'{"peft_type": "LORA"}'},
    "another kind of adapter": {**GOOD, "adapter_config.json": b'{"peft_type": "IA3", "r": 8}'},
    "a configuration that is no JSON": {**GOOD, "adapter_config.json": b"{"},
}


@pytest.mark.parametrize("content", BAD_CONTENT)
async def test_content_that_no_pool_takes_is_refused_whatever_its_hash(world: World, content: str) -> None:
    files = BAD_CONTENT[content]
    folder, manifest = forged(world, files)
    pod = await world.pod()
    await world.delivered(pod)
    status, text = await world.put(pod, folder, tar(("manifest.json", manifest), *files.items()))
    assert status == 422, text
    assert [path.name for path in pod.volume.iterdir() if path.name != ".index.json"] == []


async def test_an_adapter_larger_than_the_index_says_is_refused(world: World) -> None:
    folder, manifest = forged(world, GOOD, bytes=10)
    pod = await world.pod()
    await world.delivered(pod)
    status, text = await world.put(pod, folder, tar(("manifest.json", manifest), *GOOD.items()))
    assert (status, "the index allows 10" in text) == (422, True)


async def test_what_the_engine_refuses_is_failed_in_its_words(world: World) -> None:
    desk = world.adapter("x", rank=16)
    world.hold(desk)
    pod = await world.pod(engine=double.Engine(max_rank=8))
    await world.publish()
    delivering = asyncio.to_thread(
        delivery.deliver, desk.path, desk.sha256, "pool-pods", patience=10.0, port=world.port
    )
    with pytest.raises(errors.Failure) as failure:
        await delivering
    assert failure.value.reason is reasons.Reason.ADAPTER_NOT_SERVED
    assert "greater than max_lora_rank 8" in failure.value.message
    assert pod.engine.calls.count(("load", desk.sha256)) == loading.TRIES


# --- from a stage to all pods ---


async def test_a_stage_delivers_to_one_pod_and_all_pods_have_it(world: World) -> None:
    world.addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    desk = world.adapter("x")
    pods = [await world.pod(host) for host in world.addresses]
    delivering = asyncio.create_task(
        asyncio.to_thread(delivery.deliver, desk.path, desk.sha256, "pool-pods", patience=20.0, port=world.port)
    )
    await asyncio.sleep(0.2)
    assert not delivering.done(), "no pod takes it before the index has it"
    world.hold(desk)
    await world.publish()
    found = await delivering
    assert found.endpoints == tuple(f"http://{host}:{world.port}/adapters/{desk.sha256}" for host in world.addresses)
    assert all(pod.engine.adapters for pod in pods)
    for endpoint in found.endpoints:
        headers = {"Authorization": f"Bearer {found.key}"}
        async with world.http.get(f"{endpoint}/v1/models", headers=headers) as answer:
            assert [entry["id"] for entry in (await answer.json())["data"]] == [double.BASE, desk.sha256]
        for model, text in ((found.model, "x"), (double.BASE, "base")):
            body = {"model": model, "messages": []}
            async with world.http.post(f"{endpoint}/v1/chat/completions", headers=headers, json=body) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"] == text
    again = await asyncio.to_thread(
        delivery.deliver, desk.path, desk.sha256, "pool-pods", patience=5.0, port=world.port
    )
    assert again == found, "what is there is not sent again"
    assert (await world.state(pods[0])).traffic == [], "verification is no traffic"


async def test_a_verification_needs_the_adapters_key(world: World) -> None:
    desk, other = world.adapter("x"), world.adapter("y")
    world.hold(desk, other)
    pod = await world.pod()
    await world.delivered(pod, desk, other)
    body = {"model": desk.sha256, "messages": []}
    for key in ("", other.key, desk.sha256):
        url = f"{pod.deliveries}/adapters/{desk.sha256}/v1/chat/completions"
        async with world.http.post(url, json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
            assert answer.status == 401
    async with world.http.post(
        f"{pod.deliveries}/adapters/{desk.sha256}/v1/chat/completions",
        json={"model": other.sha256, "messages": []},
        headers={"Authorization": f"Bearer {desk.key}"},
    ) as answer:
        assert answer.status == 404, "one adapter's key is for one adapter"


async def test_a_verification_of_the_former_release_fails_for_a_moment_only(world: World) -> None:
    desk = world.adapter("x")
    world.hold(desk)
    pod = await world.pod()
    await world.delivered(pod, desk)
    body = {"model": desk.sha256, "prompt": [1, 2], "max_tokens": 1, "prompt_logprobs": 0}
    url = f"{pod.deliveries}/adapters/{desk.sha256}/v1/completions"
    async with world.http.post(url, json=body, headers={"Authorization": f"Bearer {desk.key}"}) as answer:
        assert (answer.status, answer.headers.get("Retry-After")) == (503, "5")
    assert pod.engine.requests == []


async def test_a_delivery_to_a_pool_without_pods_ends_with_its_patience(world: World) -> None:
    world.addresses = ["127.0.0.9"]
    desk = world.adapter("x")
    with pytest.raises(errors.Failure) as failure:
        await asyncio.to_thread(delivery.deliver, desk.path, desk.sha256, "pool-pods", patience=0.2, port=world.port)
    assert failure.value.reason is reasons.Reason.SERVER_FAILED
    assert "127.0.0.9" in failure.value.message


async def test_a_pod_that_does_not_answer_holds_a_delivery_up_for_a_moment_only(world: World) -> None:
    world.addresses = ["127.0.0.1", "127.0.0.9"]
    desk = world.adapter("x")
    world.hold(desk)
    await world.pod()
    await world.publish()
    found = await asyncio.to_thread(
        delivery.deliver, desk.path, desk.sha256, "pool-pods", patience=20.0, port=world.port
    )
    assert len(found.endpoints) == 1


async def test_a_new_pod_copies_from_its_peers_and_checks_what_it_gets(world: World) -> None:
    world.addresses = ["127.0.0.1", "127.0.0.2"]
    desk, shop = world.adapter("x", chat_template_jinja="{{ x }}"), world.adapter("y")
    world.serve("desk", (desk, 100))
    world.hold(shop)
    first = await world.pod()
    await world.delivered(first, desk, shop)
    (first.volume / shop.sha256 / "adapter_model.safetensors").write_text("z")  # the same size
    second = await world.pod("127.0.0.2")
    await world.ready(second, desk)
    assert (second.volume / desk.sha256 / "chat_template.jinja").read_text() == "{{ x }}"
    assert (await world.ask(second, "desk")).says == "x"
    await asyncio.sleep(0.3)
    state = {one.sha256: one.state for one in (await world.state(second)).adapters}
    assert state[shop.sha256] == "Missing", "a damaged copy is refused"
    async with world.http.get(f"{second.deliveries}/readyz") as ready:
        assert ready.status == 200, "and what nobody can reach holds nobody up"


async def test_adapters_are_given_to_pods_of_the_pool_alone(world: World) -> None:
    world.addresses = ["127.0.0.2"]
    desk = world.adapter("x")
    world.hold(desk)
    pod = await world.pod()
    await world.delivered(pod, desk)
    async with world.http.get(f"{pod.deliveries}/adapters/{desk.sha256}") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (403, "not_a_peer")


async def test_pods_may_share_a_volume(world: World) -> None:
    world.addresses = ["127.0.0.1", "127.0.0.2"]
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    shared = world.folder / "claim"
    pods = [await world.pod(host, adapters=shared) for host in world.addresses]
    await world.publish()
    await world.until(lambda: all(pod.pod._index.table for pod in pods))
    assert [status for status, _ in await asyncio.gather(*(world.put(pod, desk) for pod in pods))] == [201, 201]
    for pod in pods:
        await world.ready(pod, desk)
        assert (await world.ask(pod, "desk")).says == "x"


# --- the index, removal, restarts ---


async def test_an_adapter_that_left_the_index_is_unloaded_and_removed(world: World) -> None:
    desk, shop = world.adapter("x"), world.adapter("y")
    world.hold(desk, shop)
    pod = await world.pod()
    await world.delivered(pod, desk, shop)
    world.adapters.remove(shop.held)
    await world.publish()
    await world.until(lambda: not (pod.volume / shop.sha256).exists())
    assert set(pod.engine.adapters) == {desk.sha256}
    assert (pod.volume / desk.sha256).is_dir()
    await world.until(lambda: not hidden(pod.volume))


async def test_what_the_engine_lists_after_its_end_is_removed_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM keeps the name of an adapter that its memory has dropped."""
    monkeypatch.setattr(loading, "LIST_EVERY", 0.0)
    old, new = world.adapter("x"), world.adapter("y")
    world.hold(old, new)
    pod = await world.pod(engine=double.Engine(in_memory=1))
    await world.delivered(pod, old)
    await world.delivered(pod, new)
    world.adapters.remove(old.held)
    await world.publish()
    await world.until(lambda: not (pod.volume / old.sha256).exists())
    await asyncio.sleep(1.0)
    assert old.sha256 in pod.engine.adapters
    assert pod.engine.calls.count(("unload", old.sha256)) == 1
    world.serve("again", (old, 100))
    await world.delivered(pod, old)
    assert (await world.ask(pod, "again")).says == "x"


async def test_an_adapter_in_use_is_not_removed(world: World) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    pod.engine.gate.clear()
    asking = asyncio.create_task(world.ask(pod, "desk"))
    await world.until(lambda: pod.engine.requests)
    world.models, world.adapters = [], []
    await world.publish()
    await asyncio.sleep(0.5)
    assert (pod.volume / desk.sha256).is_dir()
    pod.engine.gate.set()
    assert (await asking).says == "x"
    await world.until(lambda: not (pod.volume / desk.sha256).exists())


BROKEN: dict[str, Any] = {
    "no JSON": b"<html>",
    "nothing": b"",
    "another document": {"items": []},
    "another pool's": {"pool": "ml/other", "etag": "9", "models": [], "adapters": []},
    "an unknown field": {"pool": POOL, "etag": "9", "models": [], "adapters": [], "more": 1},
}


@pytest.mark.parametrize("answer", BROKEN)
async def test_an_index_that_cannot_be_read_changes_nothing(world: World, answer: str) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    polls = world.operator.polls
    await world.operator.set(BROKEN[answer])
    await world.until(lambda: world.operator.polls > polls + 2)
    await asyncio.sleep(0.3)
    assert (await world.ask(pod, "desk")).says == "x"
    assert (pod.volume / desk.sha256).is_dir()


async def test_an_index_that_routes_to_another_namespaces_adapter_changes_nothing(world: World) -> None:
    desk, other = world.adapter("x"), world.adapter("y", namespace="other")
    world.serve("desk", (desk, 100))
    world.hold(other)
    pod = await world.pod()
    await world.delivered(pod, desk, other)
    polls = world.operator.polls
    world.serve("desk", (other, 100))
    await world.publish()
    await world.until(lambda: world.operator.polls > polls + 2)
    assert (await world.ask(pod, "desk")).says == "x"


async def test_a_pod_that_restarts_serves_without_the_operator(world: World) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    await world.stop(pod)
    world.operator.status = 503
    again = await world.pod()
    await world.ready(again, desk)
    assert (await world.ask(again, "desk")).says == "x"
    async with world.http.get(f"{again.deliveries}/readyz") as ready:
        assert ready.status == 200
    (again.volume / ("f" * 64)).mkdir()
    await asyncio.sleep(0.4)
    assert (again.volume / desk.sha256).is_dir()


async def test_a_pod_joins_without_the_operator_by_the_index_of_another(world: World) -> None:
    world.addresses = ["127.0.0.1", "127.0.0.2"]
    desk, gone = world.adapter("x"), world.adapter("y")
    world.serve("desk", (desk, 100))
    world.hold(gone)
    first = await world.pod()
    await world.delivered(first, desk, gone)
    world.operator.status = 503
    second = await world.pod("127.0.0.2")
    await world.ready(second, desk, gone)
    assert second.pod.ready() == ""
    assert (await world.ask(second, "desk")).says == "x"
    assert (second.volume / ".index.json").is_file(), "also for its next start"
    (second.volume / ("f" * 64)).mkdir()
    world.adapters.remove(gone.held)
    await asyncio.sleep(0.4)
    assert (second.volume / gone.sha256).is_dir()
    await world.publish()
    world.operator.status = 200
    await world.until(lambda: not (second.volume / gone.sha256).exists())


async def test_the_index_is_given_to_pods_of_the_pool_alone(world: World) -> None:
    pod = await world.pod()
    await world.delivered(pod)
    async with world.http.get(f"{pod.deliveries}/index") as answer:
        assert (await answer.json())["pool"] == POOL
    world.addresses = ["127.0.0.2"]
    pod.pod._peers._looked = float("-inf")
    async with world.http.get(f"{pod.deliveries}/index") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (403, "not_a_peer")


async def test_an_index_is_written_whole_though_pods_share_the_volume(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers at the same time, as processes of two pods are."""
    one, other = (index.Follower("http://nowhere", POOL, world.folder, lambda: None) for _ in range(2))
    replace = pathlib.Path.replace

    def late(path: pathlib.Path, target: pathlib.Path) -> Any:
        monkeypatch.setattr(pathlib.Path, "replace", replace)
        other._write(b"other")
        return replace(path, target)

    monkeypatch.setattr(pathlib.Path, "replace", late)
    one._write(b"one")
    assert (world.folder / ".index.json").read_bytes() == b"one"
    assert [path.name for path in world.folder.iterdir()] == [".index.json"]


async def test_an_index_is_followed_though_the_volume_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "write_bytes", read_only)
    monkeypatch.setattr(pathlib.Path, "unlink", read_only)
    changed: list[bool] = []
    follower = index.Follower("http://nowhere", POOL, world.folder, lambda: changed.append(True))
    follower._take(json.dumps({"pool": POOL, "etag": "1", "models": [], "adapters": []}).encode(), live=True)
    assert follower.table is not None
    assert changed


async def test_nothing_is_removed_by_an_index_from_the_volume(world: World) -> None:
    desk = world.adapter("x")
    world.hold(desk)
    pod = await world.pod()
    await world.delivered(pod, desk)
    await world.stop(pod)
    world.operator.status = 503
    document = {"pool": POOL, "etag": "old", "models": [], "adapters": []}
    (pod.volume / ".index.json").write_text(json.dumps(document))
    again = await world.pod()
    await asyncio.sleep(0.5)
    assert (again.volume / desk.sha256).is_dir()
    world.operator.status = 200
    await world.ready(again, desk)


async def test_a_pod_is_not_ready_before_index_engine_and_adapters_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, missing = world.adapter("x"), world.adapter("nowhere")
    world.serve("desk", (desk, 100))
    world.serve("lost", (missing, 100))
    port = ports.free()
    pod = await world.pod(engine_port=port)
    assert pod.pod.ready() == "the engine does not answer"
    await world.listen(pod.engine.app(), port=port)
    await world.until(lambda: pod.pod._loading.engine_ready)
    assert pod.pod.ready() == "there is no index yet"
    await world.publish()
    await world.until(lambda: pod.pod._index.table)
    assert (await world.put(pod, desk))[0] == 201
    await world.ready(pod, desk)
    assert "not loaded yet" in pod.pod.ready()
    monkeypatch.setattr(loading, "PATIENCE", 0.0)
    assert pod.pod.ready() == "", "one tenant's adapter does not hold up the others for ever"
    assert (await world.ask(pod, "desk")).says == "x"


async def test_adapters_have_their_time_from_the_engines_start_and_from_the_last_that_came(
    world: World,
) -> None:
    folders = [world.adapter(f"answer {number}") for number in range(3)]
    for number, folder in enumerate(folders):
        world.serve(f"model-{number}", (folder, 100))
    await world.publish()
    port = ports.free()
    pod = await world.pod(engine_port=port)
    await world.until(lambda: pod.pod._index.table)

    def passed(share: float) -> None:
        """So much of the patience."""
        assert "not loaded yet" in pod.pod.ready()
        pod.pod._loading._fewest_at -= share * loading.PATIENCE

    assert pod.pod.ready() == "the engine does not answer"
    pod.pod._loading._fewest_at -= 2 * loading.PATIENCE
    await world.listen(pod.engine.app(), port=port)
    await world.until(lambda: pod.pod._loading.engine_ready)
    for folder in folders[:2]:
        passed(0.7)
        assert (await world.put(pod, folder))[0] == 201
        await world.ready(pod, folder)
    passed(0.7)
    passed(0.4)
    assert pod.pod.ready() == ""


async def test_a_pod_whose_engine_started_again_is_ready_when_that_has_the_adapters(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, missing = world.adapter("x"), world.adapter("nowhere")
    world.serve("desk", (desk, 100))
    world.serve("lost", (missing, 100))
    monkeypatch.setattr(loading, "LIST_EVERY", 0.0)
    pod = await world.pod()
    await world.delivered(pod, desk)
    monkeypatch.setattr(loading, "PATIENCE", 0.0)
    await world.until(lambda: pod.pod.ready() == "")
    monkeypatch.setattr(loading, "PATIENCE", 120.0)
    load, may = pod.pod._loading._engine.load, asyncio.Event()

    async def slow(*arguments: Any) -> None:
        await may.wait()
        await load(*arguments)

    monkeypatch.setattr(pod.pod._loading._engine, "load", slow)
    pod.engine.adapters.clear()
    await world.until(lambda: "not loaded yet" in pod.pod.ready())
    may.set()
    await world.until(lambda: pod.pod.ready() == "")
    assert (await world.ask(pod, "desk")).says == "x", "and the missing one is not waited for a second time"


@pytest.mark.slow
async def test_two_hundred_adapters_are_all_served_and_few_are_in_memory(world: World) -> None:
    folders = [world.adapter(f"answer {number}") for number in range(200)]
    for number, folder in enumerate(folders):
        world.serve(f"model-{number}", (folder, 100))
    pod = await world.pod(engine=double.Engine(in_memory=64), in_memory=64)
    await world.publish()
    await world.until(lambda: pod.pod._index.table)
    for folder in folders:
        assert (await world.put(pod, folder))[0] == 201
    state = await world.ready(pod, *folders, seconds=60)
    assert sum(bool(one.resident) for one in state.adapters) == 64
    answers = await asyncio.gather(*(world.ask(pod, f"model-{number}") for number in range(200)))
    assert [answer.says for answer in answers] == [f"answer {number}" for number in range(200)]
    resident = {one.sha256 for one in (await world.state(pod)).adapters if one.resident}
    assert len(resident) == 64
    assert len(pod.engine.memory) == 64


# --- kills ---


def process(world: World, folder: pathlib.Path, ports: tuple[int, int, int]) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "finetune_trainer", "gateway", "--pool", POOL, "--index", world.index_url,
        "--adapters", str(folder), "--peers", "localhost", "--base-model", double.BASE, "--model-path", "/models/base",
        "--max-rank", "16", "--grace", "10", "--host", "127.0.0.1", "--port", str(ports[0]),
        "--delivery-port", str(ports[1]), "--engine-port", str(ports[2]),
    ]  # fmt: skip
    return subprocess.Popen(command, env=os.environ | {"FINETUNE_LOG_LEVEL": "ERROR"}, stderr=subprocess.DEVNULL)


async def answers(world: World, url: str, status: int = 200) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with world.http.get(url) as answer:
                    if answer.status == status:
                        return
            except OSError:
                pass
            await asyncio.sleep(0.05)


async def test_a_gateway_killed_during_a_delivery_leaves_no_half_adapter(world: World) -> None:
    desk, whole = world.adapter("x" * (1 << 20)), world.adapter("whole")
    world.serve("desk", (whole, 100))
    world.hold(desk)
    await world.publish()
    engine, folder = double.Engine(), world.folder / "volume"
    at = (ports.free(), ports.free(), await world.listen(engine.app()))
    base = f"http://127.0.0.1:{at[1]}"
    killed = process(world, folder, at)
    await answers(world, f"{base}/healthz")
    await world.until(lambda: (folder / ".index.json").exists())
    async with world.http.put(f"{base}/adapters/{whole.sha256}", data=whole.tar()) as answer:
        assert answer.status == 201

    async def half() -> Any:
        body = desk.tar()
        yield body[: len(body) // 2]
        await asyncio.sleep(60)

    sending = asyncio.create_task(world.http.put(f"{base}/adapters/{desk.sha256}", data=half()))
    await world.until(lambda: hidden(folder))
    killed.kill()
    killed.wait()
    with pytest.raises(aiohttp.ClientError):
        await sending
    assert hidden(folder)
    assert not (folder / desk.sha256).exists()
    again = process(world, folder, at)
    try:
        await answers(world, f"{base}/readyz")
        assert not hidden(folder), "half deliveries are removed at the start"
        body = {"model": "desk", "messages": []}
        async with world.http.post(f"http://127.0.0.1:{at[0]}/v1/chat/completions", json=body) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == "whole"
        async with world.http.put(f"{base}/adapters/{desk.sha256}", data=desk.tar()) as answer:
            assert answer.status == 201
    finally:
        again.kill()
        again.wait()


async def test_sigterm_ends_readiness_at_once_and_answers_in_their_time(world: World) -> None:
    desk = world.adapter("a long answer")
    world.serve("desk", (desk, 100))
    await world.publish()
    engine, folder = double.Engine(), world.folder / "volume"
    at = (ports.free(), ports.free(), await world.listen(engine.app()))
    base = f"http://127.0.0.1:{at[1]}"
    running = process(world, folder, at)
    try:
        await answers(world, f"{base}/healthz")
        await world.until(lambda: (folder / ".index.json").exists())
        async with world.http.put(f"{base}/adapters/{desk.sha256}", data=desk.tar()) as answer:
            assert answer.status == 201
        await answers(world, f"{base}/readyz")
        async with world.http.get(f"{base}/drained") as answer:
            assert answer.status == 409, "no request can make a pod leave"
        engine.gate.clear()
        body = {"model": "desk", "messages": [], "stream": True}
        url = f"http://127.0.0.1:{at[0]}/v1/chat/completions"
        stream = await world.http.post(url, json=body)
        running.send_signal(signal.SIGTERM)
        await answers(world, f"{base}/readyz", 503)
        drained = asyncio.create_task(world.http.get(f"{base}/drained"))
        await asyncio.sleep(0.3)
        assert not drained.done()
        engine.gate.set()
        assert b"[DONE]" in await stream.content.read()
        assert (await drained).status == 200
        assert await asyncio.to_thread(running.wait, 20) == 0
    finally:
        running.kill()
        running.wait()
