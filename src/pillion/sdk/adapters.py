"""Adapters: registered, deployed, loaded, moved, deleted (SPEC §3, §4).

A `ref` is an id `adp_…`, a name or a row id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pillion.sdk import events, files, waiting
from pillion.sdk.errors import PillionFailedError
from pillion.sdk.files import OnBytes
from pillion.sdk.transport import Transport, segment
from pillion.sdk.types import (
    Adapter,
    AdapterVersion,
    Attachment,
    Backend,
    EligibleInstance,
    Event,
    Explanation,
    Imported,
    read,
    read_list,
)
from pillion.sdk.waiting import OnProgress

UPLOAD_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 1800.0


Attachments = list[Attachment]


class Adapters:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self, *, base_model: str | None = None, q: str | None = None, limit: int | None = None
    ) -> Iterator[Adapter]:
        """`q`: part of a name or label."""
        query = {"base_model": base_model, "q": q}
        return self._transport.pages(Adapter, "/v1/adapters", query, limit)

    def get(self, ref: str | int) -> Adapter:
        return read(Adapter, self._transport.get(_path(ref)))

    def register_hf(
        self,
        name: str,
        base_model: str,
        repo: str,
        *,
        revision: str | None = None,
        region: str | None = None,
    ) -> Imported:
        """Begin to import from a Hugging Face repo. `client.jobs.wait(imported.job.id)` waits for it."""
        wanted = {
            "name": name,
            "base_model": base_model,
            "repo": repo,
            "revision": revision,
            "region": region,
        }
        return read(Imported, self._transport.send("POST", "/v1/adapters", json=_given(wanted)))

    def upload(
        self,
        name: str,
        base_model: str,
        path: str | Path,
        *,
        config: str | Path | None = None,
        region: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Adapter:
        """Register an adapter from a safetensors file, an archive of a PEFT folder, or such a folder.

        It is streamed from disk. `on_bytes` hears bytes sent and bytes in all.
        """
        wanted = _given({"name": name, "base_model": base_model, "region": region})
        with files.multipart(files.upload_of(path, config), on_bytes) as parts:
            body = self._transport.send(
                "POST", "/v1/adapters/upload", data=wanted, files=parts, timeout=UPLOAD_TIMEOUT_S
            )
        return read(Adapter, body)

    def rename(self, ref: str | int, label: str) -> Adapter:
        return read(Adapter, self._transport.send("PATCH", _path(ref), json={"label": label}))

    def delete(self, ref: str | int, *, force: bool = False) -> dict[str, Any]:
        """Raises `ConflictError` (`adapter_in_use`) for one in use, unless `force`, which drains it first."""
        answer = self._transport.send("DELETE", _path(ref), params=_force(force), timeout=READY_TIMEOUT_S)
        return answer or {}

    def load(
        self,
        ref: str | int,
        *,
        backends: Sequence[int] | None = None,
        pin: bool | None = None,
        ttl_seconds: float | None = None,
        session_key: str | None = None,
        wait: bool = True,
        timeout: float = READY_TIMEOUT_S,
    ) -> Attachments:
        """Load it on the backends (instance ids; by default where its base runs), one attachment for each.

        With `wait` the server answers once it is resident on all their replicas, or it takes too long:
        `wait_ready` waits on.
        """
        wanted = _given(
            {
                "backends": None if backends is None else [*backends],
                "pin": pin,
                "ttl_seconds": ttl_seconds,
                "session_key": session_key,
                "wait": wait,
            }
        )
        return self._attachments(_path(ref, "load"), wanted, timeout)

    def unload(self, ref: str | int, *, backends: Sequence[int] | None = None) -> Attachments:
        wanted = _given({"backends": None if backends is None else [*backends]})
        return self._attachments(_path(ref, "unload"), wanted, READY_TIMEOUT_S)

    def end_session(self, session_key: str) -> Attachments:
        """Unload all that was loaded with this `session_key`."""
        body = self._transport.send("DELETE", f"/v1/sessions/{segment(session_key)}", timeout=READY_TIMEOUT_S)
        return read_list(Attachment, body)

    def status(self) -> Iterator[Backend]:
        """Slots per backend, and the state of each adapter there."""
        return self._transport.pages(Backend, "/v1/adapters/status")

    def warmup(self, refs: Sequence[str | int]) -> Attachments:
        """Begin to load them where their bases run, unpinned."""
        return self._attachments("/v1/adapters/warmup", {"adapters": [*refs]}, READY_TIMEOUT_S)

    def attach(self, ref: str | int, instance: int) -> Attachment:
        """Wish that `instance` serve it. `wait_ready` waits until it does."""
        path = f"/v1/instances/{segment(instance)}/adapters"
        return read(Attachment, self._transport.send("POST", path, json={"adapter": ref}))

    def detach(self, ref: str | int, instance: int, *, force: bool = False) -> Attachment:
        """Answered when gone, or still `detaching`: `wait_gone` waits. `force` cuts off what is in flight."""
        path = f"/v1/instances/{segment(instance)}/adapters/{segment(ref)}"
        return read(
            Attachment, self._transport.send("DELETE", path, params=_force(force), timeout=READY_TIMEOUT_S)
        )

    def deploy_attach(self, ref: str | int, instance: int) -> Attachment:
        return self._deployment(_path(ref, "deploy"), {"attach": {"instance_id": instance}})

    def deploy_launch(self, ref: str | int, **launch: Any) -> Attachment:
        """Launch an instance and attach it there; `launch` as for `instances.launch`."""
        return self._deployment(_path(ref, "deploy"), {"launch": _given(launch)})

    def move(self, ref: str | int, source: int, target: int) -> Attachment:
        """Make before break: it is served by `target` before `source` lets it go."""
        return self._deployment(_path(ref, "move"), {"from": source, "to": target})

    def eligible_instances(self, ref: str | int) -> Iterator[EligibleInstance]:
        return self._transport.pages(EligibleInstance, _path(ref, "eligible-instances"))

    def explain(self, ref: str | int) -> Explanation:
        """Where it should be, where it is, why not, and what happens next."""
        return read(Explanation, self._transport.get(_path(ref, "explain")))

    def versions(self, ref: str | int) -> Iterator[AdapterVersion]:
        return self._transport.pages(AdapterVersion, _path(ref, "versions"))

    def add_version(
        self,
        ref: str | int,
        path: str | Path,
        *,
        config: str | Path | None = None,
        live: bool = True,
        on_bytes: OnBytes | None = None,
    ) -> AdapterVersion:
        """Upload new bytes, as `upload` does. They go live once replicas have them: `wait_live` waits for it."""
        with files.multipart(files.upload_of(path, config), on_bytes) as parts:
            body = self._transport.send(
                "POST", _path(ref, "versions"), params=_live(live), files=parts, timeout=UPLOAD_TIMEOUT_S
            )
        return read(AdapterVersion, body)

    def import_version(
        self, ref: str | int, repo: str, *, revision: str | None = None, live: bool = True
    ) -> Imported:
        """Begin to import new bytes from a Hugging Face repo. `client.jobs.wait(imported.job.id)` waits for it."""
        wanted = _given({"repo": repo, "revision": revision})
        body = self._transport.send("POST", _path(ref, "versions"), params=_live(live), json=wanted)
        return read(Imported, body)

    def make_live(self, ref: str | int, version: int) -> AdapterVersion:
        """Answered when it is live everywhere, or still `going_live`: `wait_live` waits."""
        return self._version("POST", _path(ref, f"versions/{segment(version)}/live"))

    def rollback(self, ref: str | int) -> AdapterVersion:
        """Back to the version that was live before, or, while another is going live, to the one that is."""
        return self._version("POST", _path(ref, "rollback"))

    def set_canary(self, ref: str | int, version: int, share: float) -> AdapterVersion:
        """Send `share` (0..1) of the requests to this version. It takes a slot more on every replica."""
        return self._version("PUT", _path(ref, "canary"), {"version": version, "share": share})

    def end_canary(self, ref: str | int) -> AdapterVersion:
        return self._version("DELETE", _path(ref, "canary"))

    def wait_live(
        self,
        ref: str | int,
        version: int,
        *,
        timeout: float = READY_TIMEOUT_S,
        on_progress: OnProgress | None = None,
    ) -> AdapterVersion:
        """The version, once it is live. Raises `PillionFailedError` where it failed or was called off."""
        return waiting.poll(
            self._transport,
            lambda: next(v for v in self.versions(ref) if v.version == version),
            waiting.version_live,
            what=f"Version {version} of {ref} going live",
            timeout=timeout,
            progress=waiting.version_progress,
            on_progress=on_progress,
        )

    def events(self, ref: str | int, *, follow: bool = False, limit: int | None = None) -> Iterator[Event]:
        """What happened to it; with `follow` also what happens from now on."""
        path = _path(ref, "events")
        if follow:
            return events.followed(self._transport, path, {})
        return self._transport.pages(Event, path, limit=limit)

    def download(
        self, ref: str | int, target: str | Path | None = None, *, on_bytes: OnBytes | None = None
    ) -> Path:
        """Its weights, in `target`: a file, or a folder (the present one by default).

        In a folder it gets the name that the server gives it.
        """
        where = Path(target) if target is not None else Path()
        with self._transport.stream("GET", _path(ref, "download"), timeout=60.0) as response:
            if where.is_dir():
                where = where / files.offered_name(response, f"{segment(ref)}.safetensors")
            return files.save(response, where, on_bytes)

    def attachment(self, ref: str | int, instance: int) -> Attachment:
        """The attachment to one instance. Raises `PillionFailedError` where there is none."""
        attachment = self._attached(ref, instance)
        if attachment is None:
            raise PillionFailedError(f"{ref} is not attached to instance {instance}.", code="not_attached")
        return attachment

    def wait_ready(
        self,
        ref: str | int,
        instance: int,
        *,
        timeout: float = READY_TIMEOUT_S,
        on_progress: OnProgress | None = None,
    ) -> Attachment:
        """The attachment, once every replica that must have the adapter has confirmed it.

        Raises `PillionFailedError` with the server's code where it failed, `PillionTimeoutError` in the end.
        """
        return waiting.poll(
            self._transport,
            lambda: self.attachment(ref, instance),
            waiting.attachment_ready,
            what=f"Attaching {ref} to instance {instance}",
            timeout=timeout,
            progress=waiting.attachment_progress,
            on_progress=on_progress,
        )

    def wait_gone(
        self,
        ref: str | int,
        instance: int,
        *,
        timeout: float = READY_TIMEOUT_S,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Returns once the instance no longer holds it.

        Raises `PillionTimeoutError` after `timeout` seconds.
        """
        waiting.poll(
            self._transport,
            lambda: self._attached(ref, instance),
            lambda attachment: attachment is None,
            what=f"Detaching {ref} from instance {instance}",
            timeout=timeout,
            progress=lambda attachment: waiting.Progress(attachment.state if attachment else "gone"),
            on_progress=on_progress,
        )

    def _attached(self, ref: str | int, instance: int) -> Attachment | None:
        return next((a for a in self.get(ref).attachments if a.instance_id == instance), None)

    def _version(self, method: str, path: str, wanted: dict[str, Any] | None = None) -> AdapterVersion:
        body = self._transport.send(method, path, json=wanted, timeout=READY_TIMEOUT_S)
        return read(AdapterVersion, body)

    def _deployment(self, path: str, wanted: dict[str, Any]) -> Attachment:
        return read(Attachment, self._transport.send("POST", path, json=wanted))

    def _attachments(self, path: str, wanted: dict[str, Any], timeout: float) -> Attachments:
        body = self._transport.send("POST", path, json=wanted, timeout=timeout)
        return read_list(Attachment, body)


def _path(ref: str | int, action: str | None = None) -> str:
    return f"/v1/adapters/{segment(ref)}" + (f"/{action}" if action else "")


def _force(force: bool) -> dict[str, Any]:
    return {"force": "true" if force else None}


def _live(live: bool) -> dict[str, Any]:
    return {"live": None if live else "false"}


def _given(wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if value is not None}
