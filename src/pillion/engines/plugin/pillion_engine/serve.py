"""`python -m pillion_engine.serve`: vLLM's OpenAI server on a CPU, started in half the time.

vLLM forks its engine core on GPUs and spawns it on CPUs, where the core then imports everything a second time. Nothing
computes before the fork, so forking is as safe on CPUs. What the core inherits and must not keep is closed in it.
"""

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        fork_core(type(current_platform))
        entry.setup_server = closed_in_core(entry.setup_server)
    entry.main()


def fork_core(platform: Any) -> None:
    """Lets vLLM fork: the CPU platform says `spawn` at the end of its check of the configuration."""
    check = platform.check_and_update_config

    def check_and_update_config(cls: object, vllm_config: Any) -> None:
        check(vllm_config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    platform.check_and_update_config = classmethod(check_and_update_config)


def closed_in_core(setup_server: Callable[..., tuple[str, socket.socket]]) -> Any:
    """A core that outlives its server must not keep the port, where clients would wait for ever."""

    def setup(*arguments: Any, **options: Any) -> tuple[str, socket.socket]:
        address, listener = setup_server(*arguments, **options)
        os.register_at_fork(after_in_child=lambda: _become_core(listener))
        return address, listener

    return setup


def _become_core(listener: socket.socket) -> None:
    listener.close()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
