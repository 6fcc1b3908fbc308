"""`pillion simulate`, as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pillion.main.entry import app

SMALL = ["simulate", "--replicas", "2", "--slots", "3", "--adapters", "10", "--requests", "400"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def test_a_line_for_each_policy_and_the_bound() -> None:
    lines = run(*SMALL).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        "pillion",
        "round-robin-lru",
        "hashing-lru",
        "belady's bound",
    ]


def test_one_policy_as_json() -> None:
    result = run(*SMALL, "--policy", "pillion", "--json", "--warm-up", "0.5")
    document = json.loads(result.stdout)
    assert list(document["policies"]) == ["pillion"]
    assert (document["requests"], document["policies"]["pillion"]["requests"]) == (400, 200)
    assert 0 < document["policies"]["pillion"]["hit_rate"] <= 1


def test_what_was_played_can_be_played_again_with_other_costs(tmp_path: Path) -> None:
    kept = tmp_path / "trace.csv"
    first = json.loads(run(*SMALL, "--json", "--save-trace", str(kept)).stdout)
    again = json.loads(run("simulate", str(kept), "--replicas", "2", "--slots", "3", "--json").stdout)
    assert again["policies"]["hashing-lru"]["hit_rate"] == first["policies"]["hashing-lru"]["hit_rate"]
    for name, text in (("costs.toml", "prefill_ms = 5000"), ("costs.json", '{"prefill_ms": 5000}')):
        (tmp_path / name).write_text(text)
        slow = json.loads(run(*SMALL, "--json", "--costs", str(tmp_path / name)).stdout)
        assert slow["policies"]["pillion"]["ttft_ms"]["p50"] > 5000


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run(*SMALL, "--plot", str(tmp_path / "plot.png")).exit_code == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_no_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(*SMALL, "--plot", str(tmp_path / "plot.png"))
    assert result.exit_code == 2
    assert "pillion[plots]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.csv"], "none.csv"),
        (["--costs", "none.toml"], "none.toml"),
        (["--costs", "bad.toml"], "bad.toml"),
        (["--costs", "odd.toml"], "load_mss"),
        (["--costs", "less.toml"], "load_ms, loads must"),
        (["--save-trace", "no/where.csv"], "no/where.csv"),
        (["--plot", "no/where.png"], "no/where.png"),
        (["--replicas", "0"], "--replicas"),
        (["--diurnal", "1"], "--diurnal"),
        (["--policy", "best"], "--policy"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("load_ms = ")
    Path("odd.toml").write_text("load_mss = 3")
    Path("less.toml").write_text("load_ms = -1\nloads = 0")
    result = run(*SMALL, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
