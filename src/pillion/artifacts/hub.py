"""Adapters from a Hugging Face hub: the revision pinned to a commit, two files streamed, nothing kept of the
user's.

Neither the token nor the cache of the user who runs this is read or written: tokens are the accounts' own.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pillion.artifacts.files import too_large
from pillion.artifacts.store import CONFIG, WEIGHTS, Intake
from pillion.core.adapters.config import MAX_CONFIG
from pillion.core.adapters.findings import invalid, shown
from pillion.core.adapters.formats import SAFETENSORS_ONLY
from pillion.core.errors import InvalidRequestError, UnavailableError

Progress = Callable[[int, int | None], None]
Sleep = Callable[[float], Awaitable[None]]
ATTEMPTS = 5
_TIMEOUT = 30.0
_DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class HubFile:
    """Size in bytes and SHA-256 in hex, each None where the hub does not say."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class HubRepo:
    """A repository at one commit, and its files by name."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]


class Hub:
    """One hub, as one token sees it. Without an endpoint it is HF_ENDPOINT, or huggingface.co."""

    def __init__(
        self, endpoint: str | None = None, token: str | None = None, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")
        self._token: str | bool = token or False  # False: never the token of who runs this process
        self._sleep = sleep

    async def resolve(self, repo: str, revision: str | None = None) -> HubRepo:
        """The commit that `revision` is now (a branch, tag or commit; the default branch if None), and its
        files.

        Raises `InvalidRequestError` for what is not there or not open to this token, `UnavailableError`
        where the hub cannot be reached.
        """
        api = HfApi(endpoint=self._endpoint, token=self._token)
        with self._explained(repo, revision):
            info = await asyncio.to_thread(
                api.model_info, repo, revision=revision, files_metadata=True, timeout=_TIMEOUT
            )
        if not info.sha or not COMMIT.fullmatch(info.sha):
            raise _unavailable(f"{self._endpoint} did not say which commit {repo} is at.")
        siblings = info.siblings or []
        files = {f.rfilename: HubFile(f.size, f.lfs.sha256 if f.lfs else None) for f in siblings}
        return HubRepo(repo, info.sha, files)

    async def download(self, found: HubRepo, intake: Intake, limit: int, progress: Progress) -> bytes | None:
        """Stream the adapter's weights into `intake`; returns its adapter_config.json, if it has one.

        `progress(done, total)` is called with bytes as they come. A broken connection is taken up where it
        broke. A cancelled task stops at once. Raises what `resolve` does, `AdapterTooLargeError` before a
        byte is fetched, and `AdapterInvalidError` where the repository has no safetensors adapter.
        """
        weights = _weights(found)
        if weights.size is not None and weights.size > limit:
            raise too_large(limit)
        config = await self.small_file(found, CONFIG, MAX_CONFIG) if CONFIG in found.files else None
        await self._stream(found, WEIGHTS, weights.size, intake, progress)
        written = await intake.finish()
        if weights.sha256 is not None and written.sha256 != weights.sha256:
            raise _unavailable(f"{WEIGHTS} of {found.repo} arrived damaged; import it again.")
        return config

    async def small_file(self, found: HubRepo, name: str, limit: int) -> bytes:
        """A file of at most `limit` bytes, whole. Raises `InvalidRequestError` where it is not there or
        larger."""
        data = bytearray()

        async def take(chunk: bytes) -> None:
            data.extend(chunk)
            if len(data) > limit:
                raise InvalidRequestError(
                    f"{name} of {found.repo} is larger than {limit} bytes.", param="repo"
                )

        await self._retried(found, name, lambda: len(data), take)
        return bytes(data)

    async def _stream(
        self, found: HubRepo, name: str, total: int | None, intake: Intake, progress: Progress
    ) -> None:
        async def take(chunk: bytes) -> None:
            await intake.write(chunk)
            progress(intake.size, total)

        progress(0, total)
        await self._retried(found, name, lambda: intake.size, take)
        if total is not None and intake.size != total:
            raise _unavailable(
                f"{name} of {found.repo} has {intake.size} bytes where the hub told of {total}."
            )

    async def _retried(
        self, found: HubRepo, name: str, done: Callable[[], int], take: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Fetch from byte `done()` on, again and again while the connection breaks, `ATTEMPTS` times in
        all."""
        for attempt in range(ATTEMPTS):
            try:
                return await self._fetch(found, name, done(), take)
            except (httpx.TransportError, UnavailableError) as error:
                if attempt == ATTEMPTS - 1:
                    raise _unavailable(
                        f"{self._endpoint} broke off while sending {name}: {error!r}."
                    ) from error
            await self._sleep(0.5 * 2**attempt)

    async def _fetch(
        self, found: HubRepo, name: str, start: int, take: Callable[[bytes], Awaitable[None]]
    ) -> None:
        url = hf_hub_url(found.repo, name, revision=found.commit, endpoint=self._endpoint)
        headers = {"user-agent": "pillion", "accept-encoding": "identity"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        if start:
            headers["range"] = f"bytes={start}-"
        async with (
            httpx.AsyncClient(follow_redirects=True, timeout=_TIMEOUT) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code == 416:  # nothing is left to send
                return
            self._check_status(response.status_code, found.repo, name)
            skip = start if response.status_code != 206 else 0
            async for chunk in response.aiter_bytes():
                fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                if fresh:
                    await take(fresh)

    def _check_status(self, status: int, repo: str, name: str) -> None:
        if status in (200, 206):
            return
        if status in (401, 403, 404):
            raise self._refused(f"{name} of {repo} is not there")
        raise _unavailable(f"{self._endpoint} answered {status} for {name} of {repo}.")

    @contextmanager
    def _explained(self, repo: str, revision: str | None) -> Iterator[None]:
        """What the hub's library raises, as a client may see it."""
        try:
            yield
        except HFValidationError as error:
            raise InvalidRequestError(
                f"repo {repo[:120]!r} is no repository's name.", param="repo"
            ) from error
        except RevisionNotFoundError as error:
            message = f"{repo} has no revision {str(revision)[:120]!r}."
            raise InvalidRequestError(message, param="revision") from error
        except GatedRepoError as error:
            raise self._refused(f"{repo} is gated: accept its terms with the token's account") from error
        except RepositoryNotFoundError as error:
            raise self._refused(f"{repo} does not exist") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise self._refused(f"{repo} is not open") from error
            raise _unavailable(f"{self._endpoint} answered {status} for {repo}.") from error
        except Exception as error:
            # Its HTTP client is the library's own affair and has changed its name between versions.
            if not type(error).__module__.startswith("httpx"):
                raise
            raise _unavailable(f"{self._endpoint} cannot be reached: {error}.") from error

    def _refused(self, what: str) -> InvalidRequestError:
        hint = "this account's token does not open it" if self._token else "it is private and needs a token"
        return InvalidRequestError(f"{what} on {self._endpoint}, or {hint}.", param="repo")


COMMIT = re.compile(r"[0-9a-f]{40,64}")


def _weights(found: HubRepo) -> HubFile:
    if WEIGHTS in found.files:
        return found.files[WEIGHTS]
    pickles = [name for name in found.files if name in ("adapter_model.bin", "adapter_model.pt")]
    if pickles:
        raise invalid([f"{found.repo} has {shown(pickles[0])} but no {WEIGHTS}; {SAFETENSORS_ONLY}"])
    raise invalid([f"{found.repo} has no {WEIGHTS} at its top"])


def _unavailable(message: str) -> UnavailableError:
    return UnavailableError(message, code="hub_unavailable", retry_after=10.0)
