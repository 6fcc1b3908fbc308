"""The configuration: file, then environment, then command line; an error names the setting."""

import os
from pathlib import Path
from typing import Any

import pytest

from pillion.core.catalogue import CatalogueModel
from pillion.main.config import Config, ConfigError, load

MODEL = '[[models]]\nname = "tiny"\nsource = "path:/models/tiny"\n'


def loaded(
    tmp_path: Path, toml: str = "", overrides: dict[str, Any] | None = None, **environment: str
) -> Config:
    path = tmp_path / "pillion.toml"
    path.write_text(toml)
    return load(path, overrides or {}, environment)


def test_without_anything_said_it_runs_on_this_machine() -> None:
    config = load(None, {}, {})
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert config.data_dir == Path("~/.pillion").expanduser()
    assert config.database_url == f"sqlite:///{config.data_dir}/pillion.db"
    assert config.artifacts_url == f"file://{config.data_dir}/artifacts"
    assert config.models_root == config.data_dir / "models"
    (region,) = config.catalogue().regions
    assert (region.name, region.gpus) == ("local", {"cpu": os.cpu_count()})
    assert not config.billing.enabled


def test_the_example_of_the_contract(tmp_path: Path) -> None:
    toml = """
        [database]
        url = "postgresql://u:p@h/d"
        [artifacts]
        url = "file:///srv/artifacts"
        [[regions]]
        name = "eu-1"
        provisioner = "local"
        gpus = {cpu = 8, H100 = 2}
        [[models]]
        name = "qwen3-0.6b"
        source = "hf:Qwen/Qwen3-0.6B"
        kind = "chat"
        engine = "sim"
        lora = true
        [[pools]]
        model = "qwen3-0.6b"
        replicas = 2
        [[gpu_types]]
        name = "H100"
        memory_gib = 80
        rate_per_hour = "2.49"
        [[providers]]
        name = "other"
        base_url = "https://example.com/v1"
        api_key_env = "OTHER_KEY"
        [billing]
        enabled = false
    """
    config = loaded(tmp_path, toml)
    catalogue = config.catalogue()
    assert catalogue.model("qwen3-0.6b") == CatalogueModel("qwen3-0.6b", "hf:Qwen/Qwen3-0.6B", engine="sim")
    assert catalogue.regions[0].gpus == {"cpu": 8, "H100": 2}
    assert (catalogue.pools[0].replicas, catalogue.gpu_types[0].rate_per_hour) == (2, "2.49")
    assert config.database_url == "postgresql://u:p@h/d"


def test_the_environment_goes_before_the_file_and_the_command_line_before_both(tmp_path: Path) -> None:
    toml = '[server]\nport = 1\nhost = "a"\ndata_dir = "/a"\n'
    config = loaded(tmp_path, toml, {"port": 3, "host": None}, PILLION_PORT="2", PILLION_HOST="b")
    assert (config.server.port, config.server.host, config.server.data_dir) == (3, "b", "/a")


def test_every_setting_has_a_variable(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "",
        None,
        PILLION_SERVER_PORT="99",
        PILLION_PORT="98",
        PILLION_DATA_DIR=str(tmp_path),
        PILLION_DATABASE_URL="sqlite:////x.db",
        PILLION_LIMITS_MAX_RANK="128",
        PILLION_LIMITS_DRAIN_S="2.5",
        PILLION_LIMITS_MODELS_ROOT="~/models",
        PILLION_BILLING_ENABLED="true",
        PILLION_MODELS='[{"name": "tiny", "source": "path:/t", "lora": false}]',
        PILLION_REGIONS='[{"name": "eu"}]',
    )
    assert config.server.port == 99
    assert config.data_dir == tmp_path
    assert config.database_url == "sqlite:////x.db"
    assert (config.limits.max_rank, config.limits.drain_s) == (128, 2.5)
    assert config.models_root == Path("~/models").expanduser()
    assert config.billing.enabled is True
    assert config.models == (CatalogueModel("tiny", "path:/t", lora=False),)
    assert config.catalogue().regions[0].gpus == {"cpu": os.cpu_count()}


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    config = loaded(tmp_path, "", None, PILLION_DATA_DIR="", PILLION_SERVER_PORT="", PILLION_MODELS="")
    assert (config.server.port, config.server.data_dir) == (8080, "~/.pillion")


def test_other_variables_are_no_matter(tmp_path: Path) -> None:
    assert loaded(tmp_path, "", None, PILLION_ADMIN_KEY="x", PILLION_CONFIG="y", PILLION_WHAT="z") == Config()


@pytest.mark.parametrize(
    ("toml", "names"),
    [
        ("[server]\nport = 70000", "server.port"),
        ("[server]\nport = -1", "server.port"),
        ('[server]\nport = "x"', "server.port"),
        ("server = 5", "server"),
        ("[server]\nprot = 80", "prot"),
        ("[sever]\nport = 80", "sever"),
        ("[limits]\nmax_rank = 0", "limits.max_rank"),
        ("[limits]\ndrain_s = -1", "limits.drain_s"),
        ("[tiers]\nshared_adapters = 0", "tiers.shared_adapters"),
        ("[auth]\nsession_hours = 0", "auth.session_hours"),
        ("[tracing]\nsample = 1.5", "tracing.sample"),
        ('[server]\ntrusted_proxies = "10.0.0.1/8"', "server.trusted_proxies"),
        ('[server]\nmetrics_from = "x"', "server.metrics_from"),
        ('[oidc]\nissuer = "http://id.example.com"', "oidc.issuer"),
        ("[[models]]\nname = 'x'", "models"),
        ("[[models]]\nname = 'X'\nsource = 'hf:x/x'", "'X'"),
        ("[[models]]\nname = 'x'\nsource = 's3:x'", "source"),
        ("[[models]]\nname = 'x'\nsource = 'path:relative'", "source"),
        ("[[models]]\nname = 'x'\nsource = 'hf:x/x'\nengine = 'vlm'", "engine"),
        ("[[models]]\nname = 'x'\nsource = 'hf:x/x'\nkind = 'embedding'", "lora = false"),
        ("[[models]]\nname = 'x'\nsource = 'hf:x/x'\n" * 2, "two entries"),
        ("[[regions]]\nname = 'a'\n" * 2, "two entries"),
        ("[[regions]]\nname = 'a/b'", "'a/b'"),
        ("[[regions]]\nname = 'a'\nprovisioner = 'cloud'", "provisioner"),
        ("[[regions]]\nname = 'a'\ngpus = {cpu = 'x'}", "gpus"),
        (MODEL + "[[pools]]\nmodel = 'other'", "'other'"),
        (MODEL + "[[pools]]\nmodel = 'tiny'\n" * 2, "two entries"),
        (MODEL + "[[pools]]\nmodel = 'tiny'\nreplicas = 0", "replicas"),
        (MODEL + "[[pools]]\nmodel = 'tiny'\nmax_adapters = 65", "max_adapters"),
        ("[[gpu_types]]\nname = 'H100'\nrate_per_hour = 'cheap'", "rate_per_hour"),
        ("[[gpu_types]]\nname = 'H100'\nrate_per_hour = '-1'", "rate_per_hour"),
        ("[[gpu_types]]\nname = 'H100'\nrate_per_hour = 'nan'", "rate_per_hour"),
        ("[", "pillion.toml"),
    ],
)
def test_what_is_wrong_names_the_setting_and_the_file(tmp_path: Path, toml: str, names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, toml)
    assert names in caught.value.message


@pytest.mark.parametrize(
    ("variable", "value", "names"),
    [
        ("PILLION_SERVER_PORT", "eighty", "server.port"),
        ("PILLION_PORT", "99999", "server.port"),
        ("PILLION_MODELS", "[", "PILLION_MODELS"),
        ("PILLION_MODELS", '[{"name": "x"}]', "models"),
        ("PILLION_MODELS", '{"name": "x"}', "models"),
        ("PILLION_BILLING_ENABLED", "perhaps", "billing.enabled"),
    ],
)
def test_what_is_wrong_in_the_environment_says_so(variable: str, value: str, names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {variable: value})
    assert names in caught.value.message


def test_what_is_wrong_in_the_environment_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "", None, PILLION_PORT="x")
    assert "pillion.toml" not in caught.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load(tmp_path / "missing.toml", {}, {})
    with pytest.raises(ConfigError):
        load(tmp_path, {}, {})
    (tmp_path / "latin.toml").write_bytes(b'[server]\nhost = "\xff"')
    with pytest.raises(ConfigError, match=r"latin\.toml"):
        load(tmp_path / "latin.toml", {}, {})
