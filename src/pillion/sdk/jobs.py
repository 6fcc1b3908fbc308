"""Jobs: long work with progress."""

from __future__ import annotations

from collections.abc import Iterator

from pillion.sdk import streams, waiting
from pillion.sdk.errors import PillionConnectionError, PillionTimeoutError, UnavailableError
from pillion.sdk.transport import Transport, segment
from pillion.sdk.types import Job, read
from pillion.sdk.waiting import OnProgress

JOB_TIMEOUT_S = 6 * 3600.0
LONGEST_SILENCE_S = 30.0


class Jobs:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Job]:
        return self._transport.pages(Job, "/v1/jobs", limit=limit)

    def get(self, job: str) -> Job:
        return read(Job, self._transport.get(f"/v1/jobs/{segment(job)}"))

    def cancel(self, job: str) -> Job:
        return read(Job, self._transport.send("POST", f"/v1/jobs/{segment(job)}/cancel"))

    def follow(self, job: str, *, silence: float | None = None) -> Iterator[Job]:
        """The job each time it changes, as the server tells, until it has finished or the server breaks off.

        Raises `PillionTimeoutError` after `silence` seconds without a word, where that is given.
        """
        path = f"/v1/jobs/{segment(job)}"
        with self._transport.stream("GET", path, params={"follow": "true"}, timeout=silence) as response:
            if streams.streams(response):
                yield from (read(Job, told) for told in streams.objects(response))
            else:
                response.read()
                yield read(Job, response.json())

    def wait(self, job: str, *, timeout: float = JOB_TIMEOUT_S, on_progress: OnProgress | None = None) -> Job:
        """The job, once it has succeeded. Followed, and asked for again where that breaks off.

        Raises `PillionFailedError` where it failed or was cancelled, `PillionTimeoutError` in the end.
        """
        return waiting.poll(
            self._transport,
            lambda: self._last(job, self._transport.clock() + timeout, on_progress),
            waiting.job_succeeded,
            what=f"Job {job}",
            timeout=timeout,
            progress=waiting.job_progress,
            on_progress=on_progress,
        )

    def _last(self, job: str, deadline: float, on_progress: OnProgress | None) -> Job:
        last: Job | None = None
        try:
            for last in self.follow(job, silence=LONGEST_SILENCE_S):
                if on_progress is not None:
                    on_progress(waiting.job_progress(last))
                if last.finished or self._transport.clock() > deadline:
                    break
        except (PillionConnectionError, PillionTimeoutError, UnavailableError):
            if last is None:
                raise
        return last or self.get(job)
