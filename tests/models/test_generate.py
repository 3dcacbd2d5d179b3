"""The command, as a person uses it: what it prints where, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastattention.models import generate
from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama, Session
from fastattention.models.tokenizer import Tokenizer

from . import tiny_model


def run(*arguments: Any) -> int:
    parser = argparse.ArgumentParser(prog="fastattention generate")
    generate.add_arguments(parser)
    return generate.main(parser.parse_args([str(argument) for argument in arguments]))


def continuation(path: Path, prompt: str, count: int) -> str:
    """What the model says, taken step by step without the command."""
    file = ModelFile(path)
    tokenizer = Tokenizer(file)
    session = Session(Llama.from_file(file), context=tiny_model.CONTEXT)
    logits, tokens = session.forward(tokenizer.encode(prompt)), []
    for _ in range(count):
        token = int(logits.argmax())
        if token in tokenizer.stop_tokens:
            break
        tokens.append(token)
        logits = session.forward([token])
    return tokenizer.decode(tokens)


def test_raw_continues_the_prompt(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello world", "--raw", "--model", tiny_path, "--max-tokens", 8) == 0
    out, err = capsys.readouterr()
    assert out == continuation(tiny_path, "hello world", 8) + "\n"
    assert len(out) > 1
    for part in ("prefill 2 tokens", "tokens/s", "ms a token", "attention", "stopped: "):
        assert part in err
    assert err.count("\n") == 1


def test_chat_template_is_on_by_default(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello", "--model", tiny_path, "--max-tokens", 4) == 0
    out = capsys.readouterr().out
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert out == continuation(tiny_path, rendered, 4) + "\n"


def test_both_backends_say_the_same(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for backend in ("cpu", "reference"):
        assert run("hello", "--model", tiny_path, "--max-tokens", 30, "--backend", backend) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cache_dtypes_and_threads(tiny_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello", "--model", tiny_path, "--cache-dtype", dtype, "--threads", 2, "--max-tokens", 2) == 0
    assert capsys.readouterr().out


def test_statistics_as_json(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello world", "--raw", "--model", tiny_path, "--max-tokens", 5, "--stats", "json") == 0
    statistics = json.loads(capsys.readouterr().err)
    assert statistics["prompt_tokens"] == 2
    assert statistics["generated_tokens"] == 5
    assert statistics["decode_steps"] == 4  # the first token comes from the prefill
    assert statistics["stop"] == "max-tokens"
    assert 0 < statistics["prefill_attention_seconds"] < statistics["prefill_seconds"]
    assert 0 < statistics["decode_attention_seconds"] < statistics["decode_seconds"]


def test_statistics_can_be_silent(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello", "--model", tiny_path, "--max-tokens", 1, "--stats", "none") == 0
    assert capsys.readouterr().err == ""


def test_full_context_ends_the_answer(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello", "--raw", "--model", tiny_path, "--context", 3, "--stats", "json") == 0
    statistics = json.loads(capsys.readouterr().err)
    assert statistics["stop"] == "context"
    # Three positions hold the prompt and two tokens; the third is chosen, and has no place to be taken in.
    assert statistics["generated_tokens"] == 3


def test_stop_token_ends_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stop.gguf"
    first = continuation_token(tmp_path)
    tiny_model.write(path, change={"tokenizer.ggml.eos_token_id": first})
    assert run("hello", "--raw", "--model", path, "--stats", "json") == 0
    out, err = capsys.readouterr()
    assert out == "\n"
    assert json.loads(err)["stop"] == "end"


def continuation_token(folder: Path) -> int:
    tiny_model.write(folder / "plain.gguf")
    file = ModelFile(folder / "plain.gguf")
    session = Session(Llama.from_file(file), context=8)
    return int(session.forward(Tokenizer(file).encode("hello")).argmax())


def test_seed_repeats_and_temperature_varies(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for seed in (1, 1, 2):
        options = ("--temperature", 1.5, "--top-p", 0.95, "--seed", seed, "--max-tokens", 20)
        assert run("hello", "--model", tiny_path, *options) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_a_seed_that_was_drawn_is_told(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("hello", "--model", tiny_path, "--max-tokens", 20, "--stats")
    draws = ("--temperature", 1.5)
    assert run(*options, "json", *draws) == 0
    first = capsys.readouterr()
    seed = json.loads(first.err)["seed"]
    assert run(*options, "text", *draws, "--seed", seed) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert f"; seed {seed};" in again.err
    assert run(*options, "json") == 0
    assert json.loads(capsys.readouterr().err)["seed"] is None  # nothing was drawn


def test_prompt_from_a_file_and_from_standard_input(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_bytes("\ufeffhello world\n".encode())
    options = ("--raw", "--model", tiny_path, "--max-tokens", 4)
    assert run("--prompt-file", tmp_path / "prompt.txt", *options) == 0
    from_file = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello world\n")))
    assert run("--prompt-file", "-", *options) == 0
    from_stdin = capsys.readouterr().out
    assert run("hello world", *options) == 0
    assert from_file == from_stdin == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello" * 30], "the prompt is 49 tokens long; --context allows 20"),
        ([""], "the prompt is empty"),
        ([], "give either PROMPT or --prompt-file"),
        (["x", "--prompt-file", "y"], "give either PROMPT or --prompt-file"),
        (["--prompt-file", "/nonexistent"], "--prompt-file /nonexistent: No such file"),
        (["x", "--temperature", "-1"], "temperature=-1.0"),
        (["x", "--top-p", "0"], "top_p=0.0"),
        (["x", "--model", "/nonexistent"], "/nonexistent: No such file"),
        (["a\udc80"], "not valid Unicode"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = [] if "--model" in arguments else ["--model", str(tiny_path)]
    assert run(*arguments, *defaults, "--context", 20) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_prompt_file_that_is_not_text(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary").write_bytes(b"abc\xff\xfe")
    assert run("--prompt-file", tmp_path / "binary", "--model", tiny_path) == 2
    assert "not UTF-8 (byte 3)" in capsys.readouterr().err


def test_model_without_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model.write(tmp_path / "m.gguf", drop=["tokenizer.chat_template"])
    assert run("hello", "--model", tmp_path / "m.gguf") == 2
    assert "--raw" in capsys.readouterr().err
    assert run("hello", "--model", tmp_path / "m.gguf", "--raw", "--max-tokens", 1) == 0


@pytest.mark.parametrize("package", ["gguf", "tokenizers", "jinja2", "rich", "threadpoolctl"])
def test_missing_packages_name_the_extra(
    tiny_path: Path, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run("hello", "--model", tiny_path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f'{package} is not installed; run: pip install "fastattention[models]"' in err


@pytest.mark.parametrize("option", ["--max-tokens", "--context", "--threads"])
@pytest.mark.parametrize("value", ["0", "-3", "many", "1.5"])
def test_counts_are_checked(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("hello", option, value)
    assert caught.value.code == 2
    assert "expected a whole number, 1 or more" in capsys.readouterr().err


def test_context_beyond_training_is_a_warning(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello", "--model", tiny_path, "--context", 200, "--max-tokens", 1) == 0
    assert "a context of 200 tokens is beyond the 96" in capsys.readouterr().err


def test_characters_without_a_token_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = tiny_model.vocabulary()
    tokens[len(tiny_model.CONTROL) + 0x04] = "some other text"
    tiny_model.write(tmp_path / "gap.gguf", change={"tokenizer.ggml.tokens": tokens})
    options = ("--model", tmp_path / "gap.gguf", "--raw", "--max-tokens", 1)
    assert run("a\x04b", *options) == 0
    assert "no token for '\\x04'" in capsys.readouterr().err
    assert run("\x04", *options) == 2
    assert "no character that the model's vocabulary knows" in capsys.readouterr().err


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "fastattention.models.generate", *map(str, arguments)]


def endless(tmp_path: Path) -> list[str]:
    """A command that goes on for minutes: no token ends the answer."""
    kinds = [1] * len(tiny_model.vocabulary())
    change = {"tokenizer.ggml.token_type": kinds, "llama.context_length": 1_000_000}
    path = tmp_path / "endless.gguf"
    tiny_model.write(path, change=change, drop=["tokenizer.ggml.eos_token_id"])
    return command("hello", "--raw", "--model", path, "--max-tokens", 900_000, "--threads", 1)


def start(line: list[str]) -> subprocess.Popen[bytes]:
    # Unbuffered: a byte read here must not take others along that communicate() would then miss.
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def test_interruption_ends_cleanly(tmp_path: Path) -> None:
    with start(endless(tmp_path)) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first
    (first + out).decode()  # whole characters only
    assert out.endswith(b"\n")
    assert b"stopped: interrupted" in err
    assert b"Traceback" not in err


def test_interruption_while_loading(tmp_path: Path) -> None:
    fifo = tmp_path / "prompt"
    os.mkfifo(fifo)
    line = command("--prompt-file", fifo, "--model", tmp_path / "m.gguf")
    # Opening the pipe returns once the command is waiting for its prompt.
    with start(line) as process, fifo.open("wb"):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert err == b"\ninterrupted\n"


def test_reader_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    with start(endless(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


class Terminal(io.StringIO):
    """A standard error that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_bar_only_for_long_prompts_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.gguf"
    tiny_model.write(path, change={"llama.context_length": 4000})
    options = ("--raw", "--model", path, "--max-tokens", 1)
    shown = {}
    for length in (100, 3000):
        terminal = Terminal()
        with contextlib.ExitStack() as stack:
            stack.callback(monkeypatch.undo)
            monkeypatch.setenv("TERM", "xterm")
            monkeypatch.setattr(sys, "stderr", terminal)
            assert run("1" * length, *options) == 0
        shown[length] = "reading the prompt" in terminal.getvalue()
    assert shown == {100: False, 3000: True}
    assert run("1" * 3000, *options) == 0
    assert "reading the prompt" not in capsys.readouterr().err
