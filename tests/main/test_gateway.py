"""What of the configuration reaches a gateway."""

from __future__ import annotations

from pathlib import Path

from pillion.gateway import GatewayConfig
from pillion.main.config import load
from pillion.main.gateway import gateway_config


def made(tmp_path: Path, **environment: str) -> GatewayConfig:
    config = load(None, {"data_dir": str(tmp_path)}, environment)
    return gateway_config(config, "http://control", "http://internal", "token", worker=1)


def test_what_is_not_said_is_off(tmp_path: Path) -> None:
    usual = made(tmp_path)
    assert (usual.media_urls, usual.allowed_extras, usual.access_log) == (False, frozenset(), False)
    assert (usual.trusted_proxies, usual.metrics_dir) == ((), None)
    assert usual.state_dir == tmp_path / "gateway" / "worker-1"


def test_what_is_said_is_passed_on(tmp_path: Path) -> None:
    told = made(
        tmp_path,
        PILLION_LIMITS_MEDIA_URLS="true",
        PILLION_LIMITS_REQUEST_FIELDS="priority, vllm_xargs,",
        PILLION_SERVER_TRUSTED_PROXIES="10.0.0.0/8",
        PILLION_SERVER_SNAPSHOT_MAX_AGE_S="60",
        PILLION_SERVER_ACCESS_LOG="true",
        PILLION_SERVER_WORKERS="2",
        PILLION_LIMITS_POOL_REQUESTS="10",
        PILLION_TIERS_SHARED_REQUESTS="3",
    )
    assert told.media_urls
    assert told.allowed_extras == {"priority", "vllm_xargs"}
    assert told.trusted_proxies == ("10.0.0.0/8",)
    assert told.snapshot_max_age_s == 60
    assert told.access_log
    assert told.metrics_dir == tmp_path / "gateway" / "metrics"
    assert (told.turns.of(64), told.tiers["shared"].requests) == ((5, 4), 3)
