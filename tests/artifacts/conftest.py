"""A store in a temporary directory, and the small base that adapters are for."""

from pathlib import Path

import pytest

from pillion.artifacts.store import ArtifactStore
from pillion.core.adapters.bases import Base
from tests.adapter_files import base


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}/artifacts")


@pytest.fixture
def tiny() -> Base:
    return base()


def everything(store: ArtifactStore) -> list[str]:
    """Every file under the store's root, by its path there."""
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())
