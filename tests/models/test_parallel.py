"""The decoder on several MPI ranks chooses the tokens that it chooses on one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastattention.models import ModelError
from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama, Session
from fastattention.models.parallel import ParallelSession, split
from fastattention.models.tokenizer import Tokenizer
from fastattention.runtime.communicator import Single

from ..runtime.ranks import launch, needs_mpi

PROMPT = np.random.default_rng(5).integers(0, 256, 300).tolist()
SCRIPT = str(Path(__file__).parent / "ranks_decoder.py")


def greedy(model: Llama, prompt: list[int], count: int) -> list[int]:
    session = Session(model, context=len(prompt) + count)
    logits, chosen = session.forward(prompt), []
    for _ in range(count):
        chosen.append(int(logits.argmax()))
        logits = session.forward(chosen[-1:])
    return chosen


def test_shares_add_up(tiny_file: ModelFile) -> None:
    """Without any engine: the terms of both shares' first layer make up the whole's."""
    model = Llama.from_file(tiny_file)
    shares = [split(model, rank, 2) for rank in range(2)]
    for whole, *parts in zip(model.layers, *(share.layers for share in shares), strict=True):
        np.testing.assert_array_equal(np.concatenate([part.out for part in parts]), whole.out)
        np.testing.assert_array_equal(np.concatenate([part.down for part in parts]), whole.down)
        assert sum(part.qkv.shape[1] for part in parts) == whole.qkv.shape[1]
    assert shares[0].config.heads == model.config.heads // 2


def test_one_rank_is_the_session(tiny_file: ModelFile) -> None:
    model = Llama.from_file(tiny_file)
    one, other = Session(model, context=80), ParallelSession(model, Single(), context=80)
    np.testing.assert_allclose(other.forward(PROMPT[:60]), one.forward(PROMPT[:60]), rtol=1e-5, atol=1e-5)


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2])
def test_same_tokens(tiny_path: Path, tiny_file: ModelFile, ranks: int) -> None:
    done = launch(ranks, SCRIPT, str(tiny_path), json.dumps(PROMPT), "12")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == greedy(Llama.from_file(tiny_file), PROMPT, 12)


@needs_mpi
def test_smollm2_on_three_ranks(smollm2_path: Path) -> None:
    file = ModelFile(smollm2_path)
    prompt = Tokenizer(file).encode("The quick brown fox jumps over the lazy dog. The")
    done = launch(3, SCRIPT, str(smollm2_path), json.dumps(prompt), "16", timeout=180)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == greedy(Llama.from_file(file), prompt, 16)


def test_smollm2_is_refused_on_two_ranks(smollm2_path: Path) -> None:
    model = Llama.from_file(ModelFile(smollm2_path))
    with pytest.raises(
        ModelError, match=r"9 heads, 3 KV heads .* cannot be split over 2 ranks; 1, 3 would do"
    ):
        split(model, 0, 2)
