"""Permits: what control signed is taken as it is, what anybody altered is not."""

import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.permits import Permit, PermitRefusedError, Terms, check, opened, sign
from pillion.core.replica import Grant

KEY = b"k" * 32
PERMIT = Permit("acc_a", "tiny", "eu-1", "adp_1", "d" * 64, 8, 1000, 50.0)
TERMS = Terms("acc_a", "tiny", "eu-1", 16)


def test_a_signed_permit_opens_and_names_what_to_load() -> None:
    permit = opened(sign(PERMIT, KEY), KEY)
    assert permit == PERMIT
    assert permit.entry.engine_name == f"adp_1@{'d' * 64}"
    assert (permit.entry.hold, permit.entry.pinned, permit.entry.expires_at) == ("loaded", False, 50.0)


@given(st.data())
def test_any_altered_byte_is_refused(data: st.DataObject) -> None:
    signed = bytearray(sign(PERMIT, KEY))
    where = data.draw(st.integers(0, len(signed) - 1))
    signed[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PermitRefusedError):
        opened(bytes(signed), KEY)


@pytest.mark.parametrize(
    "signed", [b"", b"x" * 31, b"x" * 32, sign(PERMIT, KEY)[:-1], sign(PERMIT, b"other")]
)
def test_what_control_did_not_sign_is_refused(signed: bytes) -> None:
    with pytest.raises(PermitRefusedError):
        opened(signed, KEY)


def test_an_empty_key_opens_nothing() -> None:
    with pytest.raises(PermitRefusedError):
        opened(sign(PERMIT, b""), b"")


@pytest.mark.parametrize(
    ("permit", "terms", "now", "reason"),
    [
        (PERMIT, TERMS, 49.0, None),
        (PERMIT, msgspec.structs.replace(TERMS, account=None), 49.0, None),
        (msgspec.structs.replace(PERMIT, region=None), TERMS, 49.0, None),
        (PERMIT, msgspec.structs.replace(TERMS, account="acc_b"), 49.0, "another account"),
        (PERMIT, msgspec.structs.replace(TERMS, base="other"), 49.0, "rides on"),
        (PERMIT, msgspec.structs.replace(TERMS, region="us-1"), 49.0, "bound to region"),
        (PERMIT, msgspec.structs.replace(TERMS, max_rank=4), 49.0, "rank"),
        (PERMIT, TERMS, 50.0, "time to live"),
    ],
)
def test_it_is_good_only_where_and_while_it_says(
    permit: Permit, terms: Terms, now: float, reason: str | None
) -> None:
    if reason is None:
        return check(permit, terms, now)
    with pytest.raises(PermitRefusedError, match=reason):
        check(permit, terms, now)


def test_what_was_kept_before_accounts_shared_slots_is_understood() -> None:
    entry = b'{"engine_name":"adp_a@1","adapter_id":"adp_a","digest":"1","rank":8,"size_bytes":9}'
    grant = msgspec.json.decode(b'{"replica":"r","version":1,"entries":[' + entry + b"]}", type=Grant)
    assert (grant.entries[0].account, grant.entries[0].weight, grant.entries[0].reserved) == ("", 1, 1)
    body = msgspec.msgpack.encode(["acc_a", "base", None, "adp_a", "1", 8, 9, None])
    assert opened(hmac.digest(b"key", body, "sha256") + body, b"key").entry.account == "acc_a"
