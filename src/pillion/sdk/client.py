"""The client: one object per noun, over one connection pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

import httpx

from pillion.sdk.account import Admin, Keys, OwnAccount, Usage
from pillion.sdk.adapters import Adapters
from pillion.sdk.billing import Billing
from pillion.sdk.chat import Chat
from pillion.sdk.events import Events
from pillion.sdk.instances import Instances
from pillion.sdk.jobs import Jobs
from pillion.sdk.models import Catalog, Places, RegisteredModels
from pillion.sdk.settings import settings
from pillion.sdk.team import Invites, Members
from pillion.sdk.transport import Transport


class Pillion:
    """A Pillion server.

    >>> with Pillion() as client:
    ...     adapter = client.adapters.upload("refunds", "qwen3-0.6b", "out/adapter_model.safetensors")
    ...     client.adapters.attach(adapter.id, 1)
    ...     client.adapters.wait_ready(adapter.id, 1)

    `base_url` and `api_key` default to `PILLION_URL` and `PILLION_API_KEY`, then to the server on this
    machine and the key that it keeps in its data directory. `timeout` is in seconds, for calls that answer
    at once.
    Raises `PillionConfigError` for a URL or key that cannot be one.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        http: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        where = settings(base_url, api_key)
        transport = Transport(where, timeout, http=http, clock=clock, sleep=sleep)
        self._transport = transport
        self.base_url = where.base_url
        self.adapters = Adapters(transport)
        self.instances = Instances(transport)
        self.catalog = Catalog(transport)
        self.registered_models = RegisteredModels(transport)
        self.places = Places(transport)
        self.jobs = Jobs(transport)
        self.events = Events(transport)
        self.keys = Keys(transport)
        self.members = Members(transport)
        self.invites = Invites(transport)
        self.account = OwnAccount(transport)
        self.usage = Usage(transport)
        self.billing = Billing(transport)
        self.admin = Admin(transport)
        self.chat = Chat(transport)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Pillion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
