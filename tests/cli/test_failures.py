"""An error as people read it."""

from __future__ import annotations

import pytest

from pillion.cli.failures import explain
from pillion.sdk.errors import from_answer


@pytest.mark.parametrize(
    ("message", "reasons", "lines"),
    [
        ("no room", [], ["error: no room (c)"]),
        ("cannot be accepted", ["a", "b"], ["error: cannot be accepted (c)", "  - a", "  - b"]),
        (
            "cannot be accepted: x 1; x 2",
            ["x 1", "x 2"],
            ["error: cannot be accepted (c)", "  - x 1", "  - x 2"],
        ),
        ("body.x: missing; body.y: missing", ["body.x: missing", "body.y: missing"], None),
        ("evil\x1b[2J\nline", [], ["error: evil [2J line (c)"]),
    ],
)
def test_findings_are_told_once(
    message: str, reasons: list[str], lines: list[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    error = from_answer(422, {"error": {"message": message, "code": "c", "reasons": reasons}}, {}, "http://x")
    explain(error)
    assert capsys.readouterr().err.splitlines() == (lines or [f"error: {message} (c)"])


def test_a_key_that_is_refused_is_told_with_where_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    body = {"error": {"message": "no key", "code": "invalid_api_key"}}
    explain(from_answer(401, body, {"x-request-id": "r", "retry-after": "2"}, "http://x"))
    assert capsys.readouterr().err.splitlines() == [
        "error: no key (invalid_api_key)",
        "  a key is given by --api-key or PILLION_API_KEY",
        "  try again in 2 s",
        "  request id: r",
    ]
