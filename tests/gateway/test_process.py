"""`run` as a process: signals, exit code, what it keeps."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp

from tests.gateway.site import Control, Engine, chat, fleet, free_url
from tests.gateway.world import BASE, make_instance, make_key, make_replica, make_snapshot

PROGRAM = """
import sys
from pathlib import Path
from pillion.gateway import GatewayConfig, run
directory, port, control = sys.argv[1:]
run(GatewayConfig(Path(directory), control, control, "internal-token", port=int(port)))
"""


async def test_sigterm_drains_and_exits_0(tmp_path: Path, control: Control) -> None:
    key, entry = make_key()
    go = asyncio.Event()

    async def slow(request, body):  # type: ignore[no-untyped-def]
        await go.wait()
        return await chat(request, body)

    async with fleet(1) as (engine,):
        engine.behave = slow
        url = free_url()
        port = url.rpartition(":")[2]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, str(tmp_path), port, control.url
        )
        try:
            async with asyncio.timeout(60):
                await control.publish(
                    make_snapshot(entry, make_instance(1, make_replica("a", url=engine.url)))
                )
                await _drain_while_asking(url, key, engine, process, go)
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _drain_while_asking(
    url: str, key: str, engine: Engine, process: asyncio.subprocess.Process, go: asyncio.Event
) -> None:
    asked = asyncio.Event()
    behave = engine.behave

    async def note(request, body):  # type: ignore[no-untyped-def]
        asked.set()
        return await behave(request, body)

    engine.behave = note
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as client:
        asking = asyncio.ensure_future(client.post(f"{url}/v1/chat/completions", json={"model": BASE}))
        await asked.wait()
        process.send_signal(signal.SIGTERM)
        while True:
            try:
                async with aiohttp.ClientSession() as other, other.get(f"{url}/healthz"):
                    await asyncio.sleep(0.01)
            except aiohttp.ClientConnectionError:
                break
        go.set()
        async with await asking as answer:
            assert (answer.status, (await answer.json())["model"]) == (200, BASE)
