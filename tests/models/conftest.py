"""A tiny model with random weights, written once a session, and the real one where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastattention.models import ModelError
from fastattention.models.gguf import ModelFile, default_model

for _package in ("gguf", "tokenizers", "jinja2", "rich", "threadpoolctl"):
    pytest.importorskip(_package, reason=f'needs {_package}: pip install "fastattention[models]"')

from . import tiny_model  # noqa: E402 - it imports gguf


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test beside this file."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.models)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a tiny model."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    tiny_model.write(path)
    return path


@pytest.fixture(scope="session")
def tiny_file(tiny_path: Path) -> ModelFile:
    """Return the tiny model, opened."""
    return ModelFile(tiny_path)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Return the path of SmolLM2-135M-Instruct."""
    try:
        return default_model()
    except ModelError as error:
        pytest.skip(str(error))
