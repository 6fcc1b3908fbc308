from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True, scope="session")
def quiet_log() -> Iterator[None]:
    """Of thousands of faults, each with a line or a traceback."""
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # whose connections are cut under it
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()
