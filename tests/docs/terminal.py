"""A terminal to run a document's commands in: one shell, and the servers it is told to start."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

PATIENCE_S = 60.0
_END = "\x1eend "
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, port: int) -> dict[str, str]:
    """A new user's: an empty home, `pillion` and `python` of these tests on the path, nothing configured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PILLION_", "OPENAI_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {
        "HOME": str(home),
        "PATH": path,
        "TERM": "dumb",
        "COLUMNS": "120",
        "LINES": "50",  # without it rich takes a dumb terminal to be 80 wide, whatever COLUMNS says
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PILLION_PORT": str(port),
        "PILLION_URL": f"http://127.0.0.1:{port}",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


class Terminal:
    """A shell whose output goes to a terminal, so that commands print what a person would see."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self._directory, self._env = directory, dict(env)
        self._master, slave = pty.openpty()
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            cwd=directory,
            env=self._env,
            start_new_session=True,
        )
        os.close(slave)
        self.server: subprocess.Popen[str] | None = None

    def run(self, command: str) -> tuple[int, list[str]]:
        """The exit status and the lines it printed, both streams in the order they came."""
        stdin = self._shell.stdin
        assert stdin is not None
        stdin.write(f"{{ {command}\n}} </dev/null; printf '{_END}%s\\n' $?\n".encode())
        stdin.flush()
        text = ""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(re.escape(_END) + r"\d+\r?\n", text):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{command!r} did not end in {PATIENCE_S:g} s; it said:\n{text}"
            text += os.read(self._master, 65536).decode(errors="replace")
        said, _, status = text.partition(_END)
        lines = [line.rstrip() for line in _CONTROL.sub("", said).splitlines()]
        return int(status), lines

    def serve(self, command: str) -> list[str]:
        """Starts a server beside the shell, the one before it having been ended as by Ctrl-C; what it says at once."""
        self.interrupt()
        log, errors = self._directory / ".serve.out", self._directory / ".serve.err"
        with log.open("w") as output, errors.open("a") as trouble:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                stdout=output,
                stderr=trouble,
                cwd=self._directory,
                env=self._env,
                text=True,
                start_new_session=True,
            )
        self._until_ready()
        return log.read_text().splitlines()

    def interrupt(self) -> None:
        """Ctrl-C in the server's terminal: it must end well."""
        if self.server is None:
            return
        self.server.send_signal(signal.SIGINT)
        status = self.server.wait(PATIENCE_S)
        self.server = None
        assert status == 0, f"the server ended with {status}"

    def close(self) -> None:
        try:
            self.interrupt()
        finally:
            if self.server is not None:
                self.server.kill()
                self.server.wait()
            self._shell.kill()
            self._shell.wait()
            if self._shell.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._shell.stdin.close()
            os.close(self._master)
            _end_all_of(self._env["HOME"])

    def _until_ready(self) -> None:
        """Until the gateway routes and control answers; a gateway that kept a snapshot does the first alone."""
        assert self.server is not None
        deadline = time.monotonic() + PATIENCE_S
        while not (_status(self._env["PILLION_URL"], "/readyz") == 200 and self._control_answers()):
            assert self.server.poll() is None, f"the server ended with {self.server.returncode}"
            assert time.monotonic() < deadline, "the server was not ready in time"
            select.select([], [], [], 0.05)

    def _control_answers(self) -> bool:
        return _status(self._env["PILLION_URL"], "/v1/catalog") == 401


def _end_all_of(home: str) -> None:
    """Agents and engines outlive a server that was killed. Each has its data directory in its arguments."""
    left = [p for p in psutil.process_iter(["cmdline"]) if any(home in a for a in p.info["cmdline"] or ())]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, PATIENCE_S)


def _status(url: str, path: str) -> int | None:
    """None where nobody answers."""
    try:
        with urllib.request.urlopen(url + path, timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None
