"""Traces: what is read is what was written, bad ones are refused with the place, made-up ones are as they were wished."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.simulate import trace
from pillion.simulate.generate import Traffic, generate
from pillion.simulate.trace import PROMPT_TOKENS, SIZE_MB, TOKENS, TraceError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = generate(Traffic(adapters=20, requests=300, drift=0.1), seed=3)
    trace.write(made, tmp_path / "trace.csv")
    read = trace.read(tmp_path / "trace.csv")
    assert [read.names[n] for n in read.adapter] == [made.names[n] for n in made.adapter]
    assert list(read.at) == pytest.approx([at - made.at[0] for at in made.at], abs=2e-6)
    assert (read.tokens, read.prompt_tokens) == (made.tokens, made.prompt_tokens)
    assert [read.sizes[n] for n in read.adapter] == [made.sizes[n] for n in made.adapter]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_is_not_told_has_defaults_and_time_has_an_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"trace{suffix}"
    if suffix == ".csv":
        path.write_text(
            "adapter,at,tokens\nb,2026-01-01T00:00:09Z,\na,2026-01-01T00:00:01Z,7\na,2026-01-01T01:00:04+01:00,8\n"
        )
    else:
        path.write_text(
            '{"adapter": "b", "at": 9}\n\n{"adapter": "a", "at": 1, "tokens": 7}\n{"adapter": "a", "at": "4", "tokens": 8.0}'
        )
    read = trace.read(path)
    assert (list(read.at), read.names, list(read.adapter)) == ([0, 3, 8], ("a", "b"), [0, 0, 1])
    assert list(read.tokens) == [7, 8, TOKENS]
    assert list(read.prompt_tokens) == [PROMPT_TOKENS] * 3
    assert read.sizes == [SIZE_MB * 1e6] * 2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "", "no request"),
        ("t.csv", "at,adapter\n", "no request"),
        ("t.csv", "when,who\n1,a\n", "t.csv:2: 'adapter' is missing"),
        ("t.csv", "at,adapter\n1,a\nx,a\n", "t.csv:3: 'at' is 'x'"),
        ("t.csv", "at,adapter\n1,a\n2026-13-01T00:00:00,a\n", "t.csv:3: 'at' is '2026-13-01T00:00:00'"),
        ("t.csv", "at,adapter,tokens\n1,a,-3\n", "t.csv:2: 'tokens' is '-3'"),
        ("t.csv", "at,adapter,size_mb\n1,a,nan\n", "t.csv:2: 'size_mb' is 'nan'"),
        ("t.csv", "at,adapter\n\x00\xff", "t.csv"),
        ("t.jsonl", '{"at": 1, "adapter": "a"}\n{"at": 1', "t.jsonl:2: this is no JSON object"),
        ("t.jsonl", "[1]\n", "t.jsonl:1: this is no JSON object"),
        ("t.jsonl", '{"at": 1, "adapter": 7}\n', "t.jsonl:1: 'adapter'"),
        ("t.jsonl", '{"adapter": "a"}\n', "t.jsonl:1: 'at' is None"),
        ("t.jsonl", '{"at": [], "adapter": "a"}\n', r"t.jsonl:1: 'at' is \[\]"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(TraceError, match=said):
        trace.read(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv"):
        trace.read(tmp_path / "none.csv")


@given(
    st.builds(
        Traffic,
        adapters=st.integers(1, 30),
        requests=st.integers(1, 200),
        rate=st.floats(0.1, 1e4),
        zipf=st.floats(0, 3),
        drift=st.floats(0, 1),
        bursts=st.integers(0, 100),
        diurnal=st.floats(0, 0.99),
    ),
    st.integers(),
)
def test_made_up_traffic_is_whole_and_can_be_made_again(traffic: Traffic, seed: int) -> None:
    made = generate(traffic, seed)
    assert made == generate(traffic, seed)
    lengths = {len(made), len(made.adapter), len(made.tokens), len(made.prompt_tokens)}
    assert lengths == {traffic.requests}
    assert list(made.at) == sorted(made.at)
    assert len(made.names) == len(made.sizes) == traffic.adapters
    assert all(0 <= adapter < traffic.adapters for adapter in made.adapter)


def test_zipf_drift_bursts_and_days() -> None:
    plain = generate(Traffic(adapters=100, requests=40_000, rate=10), 1)
    counts = [count for _, count in Counter(plain.adapter).most_common()]
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.25)
    assert plain.at[-1] == pytest.approx(4000, rel=0.05)

    drifting = generate(Traffic(adapters=100, requests=40_000, drift=0.02), 1)
    first, last = (
        {n for n, _ in Counter(part).most_common(10)}
        for part in (drifting.adapter[:4000], drifting.adapter[-4000:])
    )
    assert len(first & last) < 7
    assert (
        len(
            {n for n, _ in Counter(plain.adapter[-4000:]).most_common(10)}
            & {n for n, _ in Counter(plain.adapter[:4000]).most_common(10)}
        )
        >= 7
    )

    bursts = generate(Traffic(adapters=1000, requests=40_000, zipf=0, bursts=1), 1)
    assert 40 < Counter(bursts.adapter).most_common(1)[0][1] < 200
    assert Counter(generate(Traffic(1000, 40_000, zipf=0), 1).adapter).most_common(1)[0][1] < 80

    days = generate(Traffic(requests=40_000, rate=10, diurnal=0.8), 1)
    by_hour = Counter(int(at / 2000 * 24) % 24 for at in days.at)
    assert by_hour[6] > 5 * by_hour[18]
