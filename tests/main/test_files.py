"""Secrets on disk: whole, private, and one for all processes that start at once."""

import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest

from pillion.core.errors import ConflictError
from pillion.main import parts
from pillion.main.files import alone, private_once, private_token, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "admin-key"
    write_private(path, "one")
    write_private(path, "two\n")
    assert path.read_text() == "two\n"
    assert mode(path) == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["admin-key"]


def test_a_token_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "token"
    token = private_token(path)
    assert len(token) >= 32
    assert private_token(path) == token
    assert mode(path) == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["token"]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("mine\n")
    assert private_once(path, lambda: "other") == "mine"


def test_of_many_threads_one_wins(tmp_path: Path) -> None:
    path, found, start = tmp_path / "key", list[str](), threading.Barrier(8)

    def ask(number: int) -> None:
        start.wait()
        found.append(private_once(path, lambda: str(number)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {path.read_text()}
    assert [kept.name for kept in tmp_path.iterdir()] == ["key"]


def ask_from_a_process(path: Path, barrier, answers) -> None:
    barrier.wait(60)
    answers.put(private_token(path))


def test_of_two_processes_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    path = tmp_path / "internal-token"
    processes = [context.Process(target=ask_from_a_process, args=(path, barrier, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    tokens = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert tokens[0] == tokens[1] == path.read_text()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "serve.lock"
    told = rf"process {os.getpid()}\) runs over {tmp_path}.*--data-dir"
    for _ in range(2):
        with alone(lock), pytest.raises(ConflictError, match=told), alone(lock):
            pass


def test_starts_that_only_a_person_can_make_succeed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_log", lambda: None)
    with alone(tmp_path / "serve.lock"):
        assert parts.run_serve(None, {"data_dir": str(tmp_path)}, False) == 2
    assert "Another 'pillion serve'" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert parts.run_serve(None, {"data_dir": str(tmp_path / "file" / "x")}, False) == 2
    assert capsys.readouterr().err.startswith(f"error: The data directory {tmp_path}/file/x cannot be made")
