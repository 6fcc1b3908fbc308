"""The table of SPEC §5: every code has its status, its type and OpenAI's shape."""

import inspect

import pytest

from pillion.core import errors
from pillion.core.errors import PillionError

TABLE = {
    "invalid_request": (400, errors.InvalidRequestError),
    "base_mismatch": (400, errors.BaseMismatchError),
    "ambiguous_ref": (400, errors.AmbiguousRefError),
    "invalid_api_key": (401, errors.InvalidApiKeyError),
    "insufficient_balance": (402, errors.InsufficientBalanceError),
    "insufficient_scope": (403, errors.InsufficientScopeError),
    "model_not_found": (404, errors.ModelNotFoundError),
    "not_found": (404, errors.NotFoundError),
    "adapter_not_deployed": (404, errors.AdapterNotDeployedError),
    "adapter_in_use": (409, errors.AdapterInUseError),
    "already_attached": (409, errors.AlreadyAttachedError),
    "name_taken": (409, errors.NameTakenError),
    "adapter_too_large": (413, errors.AdapterTooLargeError),
    "adapter_invalid": (422, errors.AdapterInvalidError),
    "rate_limit_exceeded": (429, errors.RateLimitError),
    "no_healthy_replica": (503, errors.UnavailableError),
    "adapter_loading": (503, errors.AdapterLoadingError),
}


@pytest.mark.parametrize("code", TABLE)
def test_every_code_has_its_status_and_shape(code: str) -> None:
    status, kind = TABLE[code]
    error = kind("what, with what, what to do")
    assert (error.status, error.code) == (status, code)
    assert error.body() == {
        "error": {
            "message": "what, with what, what to do",
            "type": error.type,
            "param": error.param,
            "code": code,
        }
    }
    assert str(error) == "what, with what, what to do"


def test_no_room_is_a_conflict_for_a_wish_and_unavailable_for_a_request() -> None:
    assert (errors.InstanceAtCapacityError("x").status, errors.NoRoomError("x").status) == (409, 503)
    assert errors.InstanceAtCapacityError("x").code == errors.NoRoomError("x").code == "instance_at_capacity"


def test_every_class_has_a_code_and_a_type_of_its_own_choice() -> None:
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, PillionError) and kind is not PillionError:
            error = kind("PUT", "/x", ["GET"]) if kind is errors.MethodNotAllowedError else kind("x")
            assert 400 <= error.status < 600
            assert error.code != PillionError.code, kind
            assert set(error.body()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("seconds", "told"), [(0.1, "1"), (1.0, "1"), (1.2, "2"), (2.5, "3"), (60.0, "60")])
def test_retry_after_is_whole_seconds_and_never_too_early(seconds: float, told: str) -> None:
    assert errors.UnavailableError("x", retry_after=seconds).headers() == {"retry-after": told}


def test_what_is_to_be_tried_again_says_when() -> None:
    assert "retry-after" in errors.UnavailableError("x").headers()
    assert "retry-after" in errors.AdapterLoadingError("x").headers()
    assert errors.NotFoundError("x").headers() == {}


def test_reasons_and_codes_of_one_error_stay_with_it() -> None:
    error = errors.NotFoundError("x", code="model_not_found", param="model", reasons=("a", "b"))
    assert error.body()["error"]["reasons"] == ["a", "b"]
    assert error.code == "model_not_found"
    assert errors.NotFoundError("y").code == "not_found"


def test_unknown_and_foreign_models_get_one_answer() -> None:
    assert errors.model_not_found("a:1").body() == errors.model_not_found("a:1").body()
    assert errors.model_not_found("a:1").body()["error"]["param"] == "model"
