"""The command as a process of its own: interrupted, and with a reader that has gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from fake_api import KEY, FakeApi

PROGRAM = "from pillion.cli.app import app; app()"


def _start(api: FakeApi, *args: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PILLION_URL": api.url, "PILLION_API_KEY": KEY}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        # A shell starts what runs in its background deaf to it, and so all that is started from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_an_interrupt_ends_it_cleanly(api: FakeApi) -> None:
    process = _start(api, "instances", "logs", "7", "--follow")
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == ""


def test_a_reader_that_has_gone_is_no_crash(api: FakeApi) -> None:
    process = _start(api, "instances", "logs", "1", "--follow")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
