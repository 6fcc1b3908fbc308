"""Waiting until what was asked for is so: with a deadline, a back-off, and word of the progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pillion.sdk.errors import (
    PillionConnectionError,
    PillionFailedError,
    PillionTimeoutError,
    UnavailableError,
)
from pillion.sdk.transport import Transport
from pillion.sdk.types import AdapterVersion, Attachment, Failure, Instance, Job

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Progress:
    """How far it is. `done` of `total` where both are known (replicas, or a fraction of 1)."""

    stage: str
    done: float | None = None
    total: float | None = None
    detail: str = ""


OnProgress = Callable[[Progress], None]
T = TypeVar("T")


def poll(
    transport: Transport,
    fetch: Callable[[], T],
    settled: Callable[[T], bool],
    *,
    what: str,
    timeout: float,
    progress: Callable[[T], Progress],
    on_progress: OnProgress | None = None,
) -> T:
    """What `fetch` gives, as soon as it is `settled`. A server that is away is waited for as well.

    Raises `PillionTimeoutError` after `timeout` seconds, and what `fetch` and `settled` raise.
    """
    deadline = transport.clock() + timeout
    pause, state, cause = FIRST_PAUSE_S, "nothing was heard", None
    while True:
        try:
            found = fetch()
        except (PillionConnectionError, UnavailableError) as error:
            cause = error
        else:
            now = progress(found)
            state, cause = now.stage, None
            if on_progress is not None:
                on_progress(now)
            if settled(found):
                return found
        left = deadline - transport.clock()
        if left <= 0:
            raise PillionTimeoutError(
                f"{what}: not done after {timeout:g} s ({state}); it goes on."
            ) from cause
        transport.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


def instance_progress(instance: Instance) -> Progress:
    """The stage of the first replica that is not ready, and how many are."""
    ready = sum(replica.ready for replica in instance.replicas)
    behind = next((replica for replica in instance.replicas if not replica.ready), None)
    if behind is None:
        return Progress(instance.state, ready, len(instance.replicas))
    return Progress(behind.state or instance.state, ready, len(instance.replicas), behind.detail)


def instance_running(instance: Instance) -> bool:
    """Raises `PillionFailedError` where it never will be."""
    if instance.state in ("failed", "stopping", "stopped"):
        why = next((replica.error for replica in instance.replicas if replica.error), None)
        reason = why.message if why else instance.termination_reason or "its log says more"
        raise _failed(f"Instance {instance.id} is {instance.state}: {reason}", why)
    return instance.state == "running"


def attachment_progress(attachment: Attachment) -> Progress:
    return Progress(attachment.state, attachment.ready, attachment.wanted)


def attachment_ready(attachment: Attachment) -> bool:
    """Raises `PillionFailedError` with the engine's or the verifier's code."""
    if attachment.state in ("failed", "detaching"):
        why = attachment.error
        reason = f"failed: {why.message if why else 'no reason was given'}"
        if attachment.state == "detaching":
            reason = "is being detached"
        subject = attachment.adapter or attachment.adapter_id
        raise _failed(f"{subject} on instance {attachment.instance_id} {reason}", why)
    return attachment.state == "ready"


def version_progress(version: AdapterVersion) -> Progress:
    return Progress(version.state, version.ready, version.wanted)


def version_live(version: AdapterVersion) -> bool:
    """Raises `PillionFailedError` with the reason where it did not go live, or is not to any more."""
    if version.state not in ("live", "going_live"):
        why = version.error
        reason = why.message if why else "it is not to go live any more"
        raise _failed(f"Version {version.version} is {version.state}: {reason}", why)
    return version.state == "live"


def job_progress(job: Job) -> Progress:
    return Progress(job.message or job.state, job.progress, None if job.progress is None else 1.0)


def job_succeeded(job: Job) -> bool:
    """Raises `PillionFailedError` with the job's error."""
    if job.state == "cancelled":
        raise _failed(f"Job {job.id} was cancelled.", job.error, code="cancelled")
    if job.state == "failed":
        reason = job.error.message if job.error else "no reason was given"
        raise _failed(f"Job {job.id} failed: {reason}", job.error)
    return job.state == "succeeded"


def _failed(message: str, why: Failure | None, code: str | None = None) -> PillionFailedError:
    reasons = tuple(why.reasons) if why else ()
    return PillionFailedError(message, code=why.code if why else code, reasons=reasons)
