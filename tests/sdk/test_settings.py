"""Which server and which key: arguments, environment, key file; and to whom a key is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillion.sdk.errors import PillionConfigError
from pillion.sdk.settings import DEFAULT_URL, settings


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "admin-key").write_text("pil_file\n")
    return tmp_path


def test_arguments_win_over_the_environment_and_that_over_the_file(data_dir: Path) -> None:
    environ = {"PILLION_DATA_DIR": str(data_dir)}
    assert settings(None, None, environ).base_url == DEFAULT_URL
    assert settings(None, None, environ).api_key == "pil_file"
    environ |= {"PILLION_URL": "http://127.0.0.1:9/", "PILLION_API_KEY": "pil_env"}
    assert settings(None, None, environ).base_url == "http://127.0.0.1:9"
    assert settings(None, None, environ).api_key == "pil_env"
    given = settings("https://p.example/v1", "pil_arg", environ)
    assert (given.base_url, given.api_key, given.local) == ("https://p.example", "pil_arg", False)


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.0.0.9:1", "http://[::1]:1"])
def test_the_key_file_is_for_this_machine(data_dir: Path, url: str) -> None:
    assert settings(url, None, {"PILLION_DATA_DIR": str(data_dir)}).api_key == "pil_file"


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:8080", "https://localhost.example", "http://127.0.0.1.example"]
)
def test_the_key_file_is_never_sent_elsewhere(data_dir: Path, url: str) -> None:
    assert settings(url, None, {"PILLION_DATA_DIR": str(data_dir)}).api_key is None


def test_without_a_key_file_there_is_no_key(tmp_path: Path) -> None:
    assert settings(None, None, {"PILLION_DATA_DIR": str(tmp_path / "none")}).api_key is None


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "/v1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(PillionConfigError, match="is not a server's URL"):
        settings(url, None, {})


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ключ"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(PillionConfigError) as caught:
        settings(None, key, {})
    assert key not in str(caught.value)


def test_the_key_does_not_show_in_a_repr() -> None:
    assert "pil_x" not in repr(settings(None, "pil_x", {}))
