import subprocess
import sys
from pathlib import Path

from pillion.agent.command import engine_python, through


def test_an_interpreter_by_another_path_is_the_same_environment(tmp_path: Path) -> None:
    environment = tmp_path / "elsewhere" / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = through(tmp_path / "data", environment / "bin" / "python")
    assert python == through(tmp_path / "data", environment / "bin" / "python")
    assert str(python).startswith(str(tmp_path / "data"))
    ask = "import sys; print(sys.executable, sys.prefix)"
    said = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    assert said[0] == str(python)
    assert Path(said[1]).resolve() == environment


def test_the_sim_runs_in_our_own() -> None:
    assert engine_python("sim", "cpu") == Path(sys.executable)
