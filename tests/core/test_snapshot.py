"""The routing snapshot on its way from control to gateways."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core import snapshot as wire
from pillion.core.errors import PillionError
from pillion.core.routing import Routes
from tests.snapshots import difference

SNAPSHOT = wire.Snapshot(
    version=2**53,
    made_at=1.5,
    pepper=b"\x00\xff",
    keys={"abc": wire.Key("key_1", "acc_1", "00", ("inference",))},
    models=(wire.Model("qwen", None, "chat", True),),
    adapters=(
        wire.Adapter(
            "adp_1", 1, "acc_1", "mine", ("new", "old"), "qwen", 1, "adp_1@00", (3,), expires_at=9.0
        ),
    ),
    instances=(
        wire.Instance(
            3,
            None,
            "qwen",
            "qwen",
            True,
            None,
            (wire.Replica("r", "a", "http://x", "k", True, frozenset({"adp_1@00"})),),
        ),
    ),
)


def test_a_snapshot_survives_the_wire() -> None:
    assert wire.decode(wire.encode(SNAPSHOT)) == SNAPSHOT


def test_a_gateway_older_than_control_reads_what_it_knows() -> None:
    raw = msgspec.msgpack.decode(wire.encode(SNAPSHOT))
    raw["pools"] = []
    raw["models"][0]["context_length"] = 4096
    assert wire.decode(msgspec.msgpack.encode(raw)) == SNAPSHOT


@given(
    st.binary(max_size=300) | st.integers(min_value=0, max_value=200).map(lambda n: wire.encode(SNAPSHOT)[:n])
)
def test_what_is_no_snapshot_raises_what_is_promised(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        wire.decode(data)


@st.composite
def snapshots(draw: st.DrawFn, version: int) -> wire.Snapshot:
    accounts = st.sampled_from(["acc_a", "acc_b", "acc_c"])
    rows = sorted(draw(st.lists(st.integers(1, 6), unique=True)))
    adapters = tuple(
        wire.Adapter(
            f"adp_{row}", row, draw(accounts), draw(st.sampled_from(["x", f"n{row}"])), (f"ft{row}",), "qwen", 1,
            f"adp_{row}@{draw(st.integers(0, 1))}", (1,),
        )
        for row in rows
    )  # fmt: skip
    ids = sorted(draw(st.lists(st.integers(1, 4), unique=True)))
    instances = tuple(
        wire.Instance(
            id, draw(st.none() | accounts), "qwen", "qwen", True, None,
            (wire.Replica(f"r{id}", "eu", "http://r", "k", True, frozenset(a.engine_name or "" for a in adapters)),),
        )
        for id in ids
    )  # fmt: skip
    keys = {
        lookup: wire.Key(f"key_{lookup}", draw(accounts), draw(st.sampled_from(["d", "e"])), ("inference",))
        for lookup in draw(st.lists(st.sampled_from("klm"), unique=True))
    }
    models = tuple(
        wire.Model(name, None, "chat", True) for name in draw(st.sampled_from([("qwen",), ("qwen", "b")]))
    )
    return wire.Snapshot(version, float(version), b"p", keys, models, adapters, instances)


def told(routes: Routes) -> list[object]:
    """All that can be asked of them."""
    found: list[object] = [routes.version, routes.pepper, *(routes.key(lookup) for lookup in "klm")]
    for account in ("acc_a", "acc_b", "acc_c", "acc_d"):
        found += [routes.list_models(account, 0.0), *(routes.instance(account, id) for id in range(5))]
        for model, ref in [
            ("qwen", None),
            ("b", None),
            ("qwen:x", None),
            *((f"ft{n}:{n}", None) for n in range(7)),
        ]:
            found.append(_resolved(routes, account, model, ref))
        found += [_resolved(routes, account, "qwen", ref) for ref in ("x", "adp_1", "2", "n3")]
    return found


def _resolved(routes: Routes, account: str, model: str, ref: str | None) -> object:
    try:
        return routes.resolve(account, model, ref, 0.0)
    except PillionError as error:
        return error.body()


@given(st.data())
def test_deltas_one_after_the_other_are_as_good_as_the_whole(data: st.DataObject) -> None:
    before = data.draw(snapshots(1))
    routes, whole = Routes(before), before
    first = told(routes)
    kept = routes
    for version in range(2, data.draw(st.integers(2, 5))):
        after = data.draw(snapshots(version))
        delta = difference(before, after)
        news = wire.decode_news(wire.encode(delta))
        assert isinstance(news, wire.Delta)
        routes, whole, before = routes.patched(news), wire.patched(whole, news), after
        assert told(routes) == told(Routes(after)) == told(Routes(whole))
    assert told(kept) == first  # what a request holds does not change under it


def test_a_delta_to_another_version_is_refused() -> None:
    delta = wire.Delta(5, 6, 1.0, {}, None, (), (), (), ())
    with pytest.raises(ValueError, match="does not fit"):
        Routes(SNAPSHOT).patched(delta)
    with pytest.raises(ValueError, match="does not fit"):
        wire.patched(SNAPSHOT, delta)
