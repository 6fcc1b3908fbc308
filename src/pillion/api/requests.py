"""Bodies of requests to the control API. Unknown fields are refused, so that a misspelt option is not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Field(max_length=1000)
Short = Annotated[str, Field(max_length=200)]
Instant = Annotated[float, Field(ge=0, le=1e11, description="Seconds since the epoch.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class LoraBody(_Body):
    enabled: bool = True
    max_adapters: int = 16
    max_rank: int = 64
    max_active: int | None = None
    on_demand: bool = False


class LaunchBody(_Body):
    model: str = Text
    regions: list[Short] | None = Field(default=None, max_length=64)
    gpu_type: Short | None = None
    gpu_count: int = Field(default=1, ge=1, le=64)
    replicas: int | None = Field(default=None, ge=1, le=1000)
    lora: LoraBody | None = None
    engine: Literal["vllm", "sim"] | None = None
    image: str | None = Field(default=None, max_length=1000)
    openai_compatible: bool = True
    custom_api_path: str | None = Field(default=None, max_length=200, pattern="^/")
    options: dict[str, Any] = Field(default_factory=dict, description="Engine options the operator allows.")


class AttachTarget(_Body):
    instance_id: int


class DeployBody(_Body):
    """Exactly one of the two."""

    attach: AttachTarget | None = None
    launch: LaunchBody | None = None


class AttachBody(_Body):
    adapter: Short | int = Field(description="Public id, row id or name.")


class ImportBody(_Body):
    name: str = Text
    base_model: str = Text
    repo: str = Field(max_length=200)
    revision: str | None = Field(default=None, max_length=200)
    region: Short | None = None


class VersionImportBody(_Body):
    repo: str = Field(max_length=200)
    revision: str | None = Field(default=None, max_length=200)


class CanaryBody(_Body):
    version: int = Field(ge=1, lt=2**53)
    share: float = Field(ge=0, le=1, description="Of the requests, from 0 to 1.")


class RenameBody(_Body):
    label: str = Text


class MoveBody(_Body):
    source: int = Field(alias="from", ge=1, lt=2**53)
    target: int = Field(alias="to", ge=1, lt=2**53)


class LoadBody(_Body):
    backends: list[int | Short] | None = Field(default=None, min_length=1, max_length=64)
    pin: bool = False
    ttl_seconds: float | None = Field(default=None, gt=0, le=31_536_000)
    session_key: str | None = Field(default=None, min_length=1, max_length=200)
    wait: bool = True


class UnloadBody(_Body):
    backends: list[int | Short] | None = Field(default=None, min_length=1, max_length=64)


class WarmupBody(_Body):
    adapters: list[Short | int] = Field(max_length=200)


class KeyBody(_Body):
    name: str = Field(default="", max_length=100)
    scopes: list[Literal["inference", "manage", "admin"]] = Field(
        default=["inference"], min_length=1, max_length=3
    )
    expires_at: Instant | None = None
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10_000_000_000)
    allow: list[Short] = Field(
        default=[], max_length=100, description="Addresses and CIDRs it may be used from; anywhere if empty."
    )
    spend_limit: int | None = Field(
        default=None, ge=0, lt=2**53, description="Micro-units of the currency per calendar month (UTC)."
    )


class KeyChangeBody(_Body):
    """What is left out stays as it is."""

    name: str = Field(default="", max_length=100)
    expires_at: Instant | None = None
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10_000_000_000)
    allow: list[Short] = Field(default=[], max_length=100)
    spend_limit: int | None = Field(default=None, ge=0, lt=2**53)


class LoginBody(_Body):
    """`email` and `password`, or `api_key` alone."""

    email: Short | None = None
    password: str | None = Field(default=None, max_length=1000)
    account: Short | None = Field(default=None, description="Name or id, for who is in several.")
    api_key: Short | None = None


class PasswordBody(_Body):
    current: str = Field(max_length=1000)
    password: str = Field(max_length=1000)


class AcceptBody(_Body):
    token: Short
    name: str = Field(min_length=1, max_length=100)
    password: str = Field(max_length=1000)


class InviteBody(_Body):
    email: str = Field(max_length=254)
    role: Literal["owner", "member"] = "member"


class MemberBody(_Body):
    role: Literal["owner", "member"] | None = None
    name: str | None = Field(default=None, min_length=1, max_length=100)


class AccountBody(_Body):
    name: str = Text
    tier: Literal["shared", "reserved", "dedicated"] = "shared"
    local_only: bool = False


class AccountChangeBody(_Body):
    """What is left out stays as it is."""

    name: str | None = Field(default=None, max_length=1000)
    tier: Literal["shared", "reserved", "dedicated"] | None = None
    local_only: bool | None = None
    suspended: bool | None = None


class RegisterModelBody(_Body):
    name: str = Text
    source: str = Field(max_length=1000, description="hf:<repo>[@revision] or path:<directory>")
    kind: Literal["chat", "embedding"] = "chat"
    lora: bool = True
    region: Short | None = None


class GatewayBody(_Body):
    name: str = Field(default="", max_length=100)


class HfTokenBody(_Body):
    token: str = Field(min_length=1, max_length=500)


class PriceBody(_Body):
    kind: Literal["gpu_hour", "tokens"]
    item: str = Field(max_length=200, description="A GPU type, or a base model.")
    region: Short | None = None
    hourly: int | None = Field(default=None, ge=0, description="In 1e-6 of the currency.")
    input: int | None = Field(default=None, ge=0, description="In 1e-6 of the currency per 1,000,000 tokens.")
    output: int | None = Field(default=None, ge=0)
    effective_at: Instant | None = None


class CreditBody(_Body):
    account: str = Field(max_length=80)
    kind: Literal["topup", "bonus", "admin_correction"] = "topup"
    amount: int = Field(description="In 1e-6 of the currency.", ge=-(10**15), le=10**15)
    key: str | None = Field(
        default=None, min_length=1, max_length=100, description="Given again, it is the same credit."
    )
    note: str = Field(default="", max_length=200)
