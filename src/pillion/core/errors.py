"""One tree of errors and one table to HTTP (SPEC §5).

An error says what is wrong, with what, and what to do. Its `code` is the contract; its message is for people.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any, ClassVar


class PillionError(Exception):
    """An error a client may see. `reasons` lists every single finding where there are several."""

    status: ClassVar[int] = 500
    code: str = "internal_error"
    type: ClassVar[str] = "api_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        reasons: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.reasons = reasons
        if code is not None:
            self.code = code

    def body(self) -> dict[str, Any]:
        """OpenAI's error shape: `{"error": {message, type, param, code[, reasons]}}`."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.reasons:
            error["reasons"] = list(self.reasons)
        return {"error": error}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(max(1, ceil(self.retry_after)))}


class InvalidRequestError(PillionError):
    status, code, type = 400, "invalid_request", "invalid_request_error"


class MethodNotAllowedError(InvalidRequestError):
    status = 405

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(allowed)
        super().__init__(f"{method[:40]} cannot be asked of {path[:200]}; it takes {self.allowed}.")

    def headers(self) -> dict[str, str]:
        return {"allow": self.allowed}


class BaseMismatchError(InvalidRequestError):
    code = "base_mismatch"


class AmbiguousRefError(InvalidRequestError):
    code = "ambiguous_ref"


class InvalidApiKeyError(PillionError):
    status, code, type = 401, "invalid_api_key", "authentication_error"


class InvalidLoginError(PillionError):
    status, code, type = 401, "invalid_login", "authentication_error"


class NotLoggedInError(PillionError):
    status, code, type = 401, "not_logged_in", "authentication_error"


class InsufficientBalanceError(PillionError):
    status, code, type = 402, "insufficient_balance", "billing_error"


class ModelNotPricedError(PillionError):
    status, code, type = 402, "model_not_priced", "billing_error"


class InsufficientScopeError(PillionError):
    status, code, type = 403, "insufficient_scope", "permission_error"


class CsrfError(PillionError):
    """A browser sent a cookie along; whether its page is ours does not show."""

    status, code, type = 403, "csrf_token_invalid", "permission_error"


class AccountSuspendedError(PillionError):
    status, code, type = 403, "account_suspended", "permission_error"


class AddressNotAllowedError(PillionError):
    """The key is good, and may not be used from here."""

    status, code, type = 403, "address_not_allowed", "permission_error"


class NotFoundError(PillionError):
    status, code, type = 404, "not_found", "not_found_error"


class ModelNotFoundError(NotFoundError):
    code = "model_not_found"


class AdapterNotDeployedError(NotFoundError):
    code = "adapter_not_deployed"


class ArtifactMissingError(NotFoundError):
    code = "artifact_missing"


class ArtifactCorruptError(PillionError):
    """Stored bytes are not those of their digest. Never served; upload or import them again."""

    status, code, type = 500, "artifact_corrupt", "api_error"


class ConflictError(PillionError):
    status, code, type = 409, "conflict", "conflict_error"


class NameTakenError(ConflictError):
    code = "name_taken"


class InstanceAtCapacityError(ConflictError):
    code = "instance_at_capacity"


class AdapterInUseError(ConflictError):
    code = "adapter_in_use"


class AlreadyAttachedError(ConflictError):
    code = "already_attached"


class AdapterTooLargeError(PillionError):
    status, code, type = 413, "adapter_too_large", "invalid_request_error"


class RequestTooLargeError(PillionError):
    status, code, type = 413, "request_too_large", "invalid_request_error"


class AdapterInvalidError(PillionError):
    status, code, type = 422, "adapter_invalid", "invalid_request_error"


class RateLimitError(PillionError):
    status, code, type = 429, "rate_limit_exceeded", "rate_limit_error"


class InsufficientQuotaError(RateLimitError):
    """Trying again at once cannot help."""

    code = "insufficient_quota"

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "x-should-retry": "false"}


class UnavailableError(PillionError):
    """Try again: nothing was done. Carries `retry-after`."""

    status, code, type = 503, "no_healthy_replica", "unavailable_error"

    def __init__(self, message: str, *, code: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class AdapterLoadingError(UnavailableError):
    code = "adapter_loading"


class NoRoomError(UnavailableError):
    """On demand there is no slot now (the control API's own answer is `InstanceAtCapacityError`)."""

    code = "instance_at_capacity"


class StorageFullError(UnavailableError):
    """No room for what was to be kept: nothing of it was. Trying again helps once the operator has made room."""

    code = "storage_full"

    def __init__(self, what: str) -> None:
        super().__init__(f"The disk of {what} is full: nothing was kept. Ask the operator.", retry_after=30.0)


def account_suspended() -> AccountSuspendedError:
    return AccountSuspendedError("This account is suspended; ask the operator why.")


def address_not_allowed(address: str) -> AddressNotAllowedError:
    return AddressNotAllowedError(
        f"This API key may not be used from {address[:80] or 'an unknown address'}."
    )


def model_not_found(model: str) -> ModelNotFoundError:
    """The one answer for what is unknown and for what belongs to another account, byte for byte."""
    return ModelNotFoundError(
        f"The model '{model}' does not exist or you do not have access to it. GET /v1/models lists what you can call.",
        param="model",
    )
