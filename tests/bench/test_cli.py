"""The command line: what a newcomer types, and what a mistake answers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastattention
from fastattention import cli
from fastattention.bench import results

needs_extra = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("rich", "matplotlib")), reason="needs the extra bench"
)

FAST = ["--quick", "--filter", "decode 1t", "--peers", "none"]


def run(*arguments: str) -> int:
    """Return the exit code, also where argparse exits by itself."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in ("bench", "generate", "config", "--version", "examples"):
        assert word in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"fastattention {fastattention.__version__}\n"


def test_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config") == 0
    assert fastattention.get_isa() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["bench", "--threads", "0"], "1 or more"),
        (["bench", "--threads", "x"], "1 or more"),
        pytest.param(["bench", "--threads", "100000"], "this process may use", marks=needs_extra),
        pytest.param(["bench", "--isa", "avx1024"], "avx1024", marks=needs_extra),
        (["bench", "--peers", "abacus"], "abacus"),
        pytest.param(
            ["bench", "--filter", "nonsense"], "no row of the default set matches", marks=needs_extra
        ),
        (["bench", "--quick", "--full"], "not allowed with"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@needs_extra
def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--list", "--filter", "decode float32", "--threads", "1") == 0
    names = capsys.readouterr().out.split()
    assert "decode/float32/full/H32/D128/S8192/1t" in names
    assert all(name.startswith("decode/float32/") for name in names)


@needs_extra
def test_peers_without_names_are_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--list", "--peers") == 0
    assert "prefill/float32/full/H8/D128/S4096/1t" in capsys.readouterr().out.split()


@needs_extra
def test_bench_runs_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    isa = fastattention.get_isa()
    assert run("bench", *FAST, "--json", str(path), "--isa", "baseline") == 0
    text = capsys.readouterr().out
    assert "decode/float32/full" in json.loads(path.read_text(encoding="utf-8"))["rows"][0]["summary"]["name"]
    assert "of limit" in text
    assert str(path) in text
    assert {item.name for item in tmp_path.iterdir()} == {"out.json", "out-roofline.png", "out-bars.png"}
    outcome = results.load(path)
    assert outcome.environment["isa"] == "baseline"
    assert outcome.rows[0].limit > 0
    assert fastattention.get_isa() == isa  # --isa holds for the run only


@needs_extra
def test_wrong_output_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeros(*arrays: object, out: object, **options: object) -> None:
        out[...] = 0  # type: ignore[index]

    monkeypatch.setattr("fastattention.bench.calls.attention", zeros)
    assert run("bench", *FAST, "--json", str(tmp_path / "out.json")) == 1
    assert "WRONG, not timed: decode/float32/full" in capsys.readouterr().out
    assert results.load(tmp_path / "out.json").rows == []


def test_missing_extra_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*(key for key in sys.modules if key.startswith("fastattention.bench.")), "rich.console"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("fastattention.bench.run", raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert run("bench", "--quick") == 2
    assert capsys.readouterr().err.splitlines() == [
        'fastattention bench needs more packages: pip install "fastattention[bench]"'
    ]


def test_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastattention", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("fastattention ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fastattention import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'rich', 'matplotlib', 'torch', 'tokenizers'} & sys.modules.keys()\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_an_isa_that_does_not_exist_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTATTENTION_ISA", "avx1024")
    fastattention.set_isa(None)  # forget what was read before
    assert cli.main(["config"]) == 2
    assert "FASTATTENTION_ISA: 'avx1024'" in capsys.readouterr().err
    monkeypatch.delenv("FASTATTENTION_ISA")
    fastattention.set_isa(None)
