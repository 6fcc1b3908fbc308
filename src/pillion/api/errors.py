"""The shape of every error, for OpenAPI."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str
    reasons: list[str] | None = None


class ErrorBody(BaseModel):
    error: ErrorDetail
