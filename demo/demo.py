"""`make demo`: the main job on a real engine, from nothing to adapters swapped under load, and what happened.

`MODEL=hf:Qwen/Qwen3-0.6B make demo` takes a real model where there is a network. `make demo-stop` ends it all.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

import server
from pillion.engines.environments import EngineEnvironments, default_root
from pillion.sdk import Pillion
from pillion.sdk.errors import NotFoundError
from pillion.sdk.types import Instance
from pillion.sdk.waiting import Progress
from pillion.tuning.recipe import DemoModel, default_cache, make_demo_model
from traffic import Traffic, ask

console = Console(highlight=False, soft_wrap=True)
UNDER_LOAD_S = 4.0
SLOTS = 4


def main() -> int:
    if "--stop" in sys.argv:
        console.print("ended" if server.stop() else "nothing of the demo was running")
        return 0
    started = time.monotonic()
    model = prepare()
    url = start_server(model)
    client = Pillion(url, server.admin_key())
    instance = bring_up(client, model)
    refs = register(client, model)
    talk(client, model, instance, refs, url)
    good = swap_under_load(client, model, instance, refs, url)
    good &= kill_and_recover(client, model, instance, refs)
    farewell(model, instance, refs, url, time.monotonic() - started)
    if os.environ.get("PILLION_DEMO_STOP"):
        server.stop()
    return 0 if good else 1


def step(text: str) -> None:
    console.print(f"\n[bold cyan]▸ {text}[/]")


def say(text: str) -> None:
    console.print(f"  {text}", markup=False)


def prepare() -> DemoModel:
    """Engine and model: installed and trained at the first run, found again later."""
    step("Engine and model")
    environments = EngineEnvironments(default_root())
    name = environments.detect()
    began = time.monotonic()
    environments.install(name, progress=say)
    python = environments.python(name)
    say(f"engine {name} is ready ({time.monotonic() - began:.0f} s)")
    began = time.monotonic()
    model = make_demo_model(python, default_cache(), os.environ.get("MODEL"), say)
    say(
        f"base {model.name} and adapters {', '.join(a.name for a in model.adapters)} ({time.monotonic() - began:.0f} s)"
    )
    return model


def start_server(model: DemoModel) -> str:
    step("pillion serve")
    config = server.write_config(model.name, model.source, dict(model.engine_options))
    found = server.running()
    url = found or server.start(config)
    say(f"{'found it running' if found else 'it answers'} at {url}")
    return url


def bring_up(client: Pillion, model: DemoModel) -> Instance:
    """An instance with LoRA that runs: the one of the run before, else a new one."""
    step(f"An instance of {model.name}")
    there = [
        i for i in client.instances.list() if i.model == model.name and i.state not in ("stopped", "stopping")
    ]
    began = time.monotonic()
    instance = there[0] if there else client.instances.launch(model.name, lora={"max_adapters": SLOTS})
    last = ""

    def stage(progress: Progress) -> None:
        nonlocal last
        text = f"{progress.stage} {progress.detail}".strip()
        if text != last:
            say(f"{time.monotonic() - began:5.1f} s  {text}")
            last = text

    instance = client.instances.wait_running(instance.id, timeout=900, on_progress=stage)
    say(
        f"instance {instance.id} runs after {time.monotonic() - began:.1f} s, with {SLOTS} slots for adapters"
    )
    for attachment in list(client.instances.adapters(instance.id)):
        client.adapters.detach(attachment.adapter_id, instance.id)
        client.adapters.wait_gone(attachment.adapter_id, instance.id)
    return instance


def register(client: Pillion, model: DemoModel) -> dict[str, str]:
    """Each adapter uploaded once; name → alias."""
    step("Register three adapters")
    known = {a.name: a for a in client.adapters.list()}
    aliases = {}
    for adapter in model.adapters:
        found = known.get(adapter.name) or client.adapters.upload(
            adapter.name,
            model.name,
            adapter.path / "adapter_model.safetensors",
            config=adapter.path / "adapter_config.json",
        )
        aliases[adapter.name] = found.aliases[0]
        say(f"{found.aliases[0]:<12} {found.aliases[1]:<24} {adapter.describe}")
    return aliases


def attach(client: Pillion, name: str, instance: Instance) -> None:
    began = time.monotonic()
    client.adapters.attach(name, instance.id)
    client.adapters.wait_ready(name, instance.id)
    say(f"attached {name}, resident and proved after {1000 * (time.monotonic() - began):.0f} ms")


def talk(client: Pillion, model: DemoModel, instance: Instance, refs: dict[str, str], url: str) -> None:
    """The same question to the base and to two adapters, by every name they have."""
    step("Attach two, and call them by name")
    first, second = [a.name for a in model.adapters][:2]
    attach(client, first, instance)
    attach(client, second, instance)
    prompt = model.prompts[0].prompt
    say(f"question: {prompt}")
    names = [model.name, f"{model.name}:{instance.id}"]
    names += [text for name in (first, second) for text in (refs[name], f"{model.name}:{name}")]
    for name in names:
        say(f"{name:<24} → {ask(client, name, prompt)}")
    say("the same with curl:")
    body = f'{{"model": "{refs[first]}", "messages": [{{"role": "user", "content": "{prompt}"}}]}}'
    say(f"curl {url}/v1/chat/completions -H 'content-type: application/json' \\")
    say(f"  -H \"authorization: Bearer $(cat {short(server.DATA / 'admin-key')})\" -d '{body}'")


def swap_under_load(
    client: Pillion, model: DemoModel, instance: Instance, refs: dict[str, str], url: str
) -> bool:
    """Attach a third and detach one while requests run; every answer is compared with the model's own."""
    step("Swap adapters while requests run")
    first, second, third = [a.name for a in model.adapters][:3]
    with Traffic(url, server.admin_key(), [p.prompt for p in model.prompts[:8]]) as traffic:
        for name in (model.name, refs[first], refs[second]):
            traffic.learn(client, name)
        time.sleep(UNDER_LOAD_S)
        attach(client, third, instance)
        traffic.learn(client, refs[third])
        time.sleep(UNDER_LOAD_S)
        traffic.drop(refs[first])
        client.adapters.detach(first, instance.id)
        client.adapters.wait_gone(first, instance.id)
        say(f"detached {first}: the engine was asked and no longer has it")
        time.sleep(UNDER_LOAD_S)
    refused = False
    try:
        ask(client, refs[first], model.prompts[0].prompt)
    except NotFoundError as error:
        refused = True
        say(f"{refs[first]} now answers {error.status} {error.code}, never the base")
    report = traffic.report
    for name, count in sorted(report.served.items()):
        say(f"{count:5d} answers from {name}")
    say(
        f"{report.served.total()} requests ran: {len(report.failed)} failed, {len(report.wrong)} with wrong weights"
    )
    for line in [*report.failed[:3], *map(str, report.wrong[:3])]:
        say(f"  {line}")
    return refused and not report.failed and not report.wrong


def kill_and_recover(client: Pillion, model: DemoModel, instance: Instance, refs: dict[str, str]) -> bool:
    """kill -9 the engine; it comes back by itself, with its adapters, before they get traffic."""
    step("Kill the engine (SIGKILL)")
    third = [a.name for a in model.adapters][2]
    prompt = model.prompts[0].prompt
    before = ask(client, refs[third], prompt)
    replica = client.instances.get(instance.id).replicas[0]
    engine = server.engine_process(replica.id)
    began = time.monotonic()
    engine.send_signal(signal.SIGKILL)
    say(f"killed process {engine.pid}")
    engine.wait(30)
    now = replica
    while now.restarts == replica.restarts or not now.ready:
        time.sleep(0.2)
        now = client.instances.get(instance.id).replicas[0]
    client.adapters.wait_ready(third, instance.id, timeout=300)
    after = ask(client, refs[third], prompt)
    say(f"back with its adapters after {time.monotonic() - began:.1f} s; {refs[third]} → {after}")
    return before == after


def farewell(model: DemoModel, instance: Instance, refs: dict[str, str], url: str, took: float) -> None:
    second = [a.name for a in model.adapters][1]
    step(f"Done in {took:.0f} s. It goes on running: make demo-stop ends it")
    say(f"URL  {url}/v1")
    say(f"key  {server.admin_key()}")
    say("next:")
    say(f"  export PILLION_URL={url} PILLION_API_KEY=$(cat {short(server.DATA / 'admin-key')})")
    for line in (
        "adapters list",
        f"instances get {instance.id}",
        f'chat {refs[second]} "{model.prompts[1].prompt}"',
        f"adapters detach {second} {instance.id}",
    ):
        say(f"  .venv/bin/pillion {line}")


def short(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    sys.exit(main())
