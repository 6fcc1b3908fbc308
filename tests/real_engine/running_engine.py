"""A running engine, as tests see it."""

from dataclasses import dataclass
from pathlib import Path

import httpx

BASE = "tiny"
# As many as the test of mixed batches fills: stock vLLM takes the weights of the last for those of the base.
SLOTS = 4


@dataclass(frozen=True)
class Engine:
    """A running engine: where it listens, its keys, and the directory of the models it was made for."""

    url: str
    infer_key: str
    agent_key: str
    models: Path
    log: Path

    def agent(self) -> httpx.AsyncClient:
        return self._client(self.agent_key)

    def user(self) -> httpx.AsyncClient:
        return self._client(self.infer_key)

    def _client(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"},
            timeout=120,
            limits=httpx.Limits(max_connections=None),
        )
