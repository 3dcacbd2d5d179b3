"""The profiler's table, read back; no profiler and no GPU needed."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import types

import pytest

from fastattention.bench.gpu import profile

LAUNCHES = len(profile.CALLS) * profile.REPEATS


def table(launches: int = LAUNCHES, metrics: tuple[str, ...] = profile.METRICS) -> str:
    """What ncu prints: notes, names, units, a row a launch whose numbers have commas."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["ID", "Kernel Name", *metrics])
    writer.writerow(["", "", *["unit"] * len(metrics)])
    for i in range(launches):
        writer.writerow([i, "attention", *[f"{1000 * i + j:,}.5" for j in range(len(metrics))]])
    return "==PROF== Connected to process 1\n" + text.getvalue()


def test_numbers_and_order():
    launches = profile.parse(table())
    assert len(launches) == LAUNCHES
    assert launches[2][profile.METRICS[1]] == 2001.5
    kernels = profile._kernels(launches)
    assert [k["name"] for k in kernels] == [call[0] for call in profile.CALLS]
    assert kernels[1]["metrics"] == launches[5]  # the last of three
    assert kernels[2]["shape"] == "float16, D=128, 4096 keys, batch 2, 16 heads, causal"
    assert "32/8 heads" in kernels[3]["shape"]


def test_what_is_not_a_table():
    with pytest.raises(ValueError, match=r"no table: .*ERR_NVGPUCTRPERM"):
        profile.parse("==ERROR== ERR_NVGPUCTRPERM")
    with pytest.raises(ValueError, match=r"lacks dram__bytes_read\.sum"):
        profile.parse(table(metrics=tuple(m for m in profile.METRICS if m != "dram__bytes_read.sum")))
    with pytest.raises(ValueError, match=f"expected {LAUNCHES} launches .*, got 1"):
        profile._kernels(profile.parse(table(1)))


def test_the_command_names_the_module_however_it_is_run():
    """``python -m`` calls it ``__main__``, which nobody can start."""
    name = "fastattention.bench.gpu.profile"
    code = f"import runpy; print(runpy.run_module({name!r}, run_name='another')['command']('ncu')[-2])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


def test_the_command_leaves_the_clocks_alone():
    command = profile.command("ncu")
    assert command[command.index("--clock-control") + 1] == "none"
    assert command[-3:] == ["-m", "fastattention.bench.gpu.profile", "--workload"]


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(profile.gpu, "card", lambda: types.SimpleNamespace(name="NVIDIA Card (1)"))
    runtime = types.SimpleNamespace(driverGetVersion=lambda: 13000)
    cupy = types.SimpleNamespace(__version__="14", cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(profile.gpu, "load_cupy", lambda: cupy)
    monkeypatch.setattr(profile.shutil, "which", lambda name: "/bin/ncu")
    done = subprocess.CompletedProcess([], 0, table(), "")
    monkeypatch.setattr(profile.subprocess, "run", lambda *args, **options: done)
    return done


def test_file(card, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert profile.main([]) == 0
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.startswith("profile-nvidia-card-1-")
    content = json.loads(path.read_text())
    assert content["hardware"] == "NVIDIA Card (1)"
    assert len(content["kernels"]) == len(profile.CALLS)
    assert "Wrote" in capsys.readouterr().out


def test_failures_write_nothing(card, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    card.stdout, card.stderr = "nothing", "no rights"
    assert profile.main([]) == 1
    assert "no rights" in capsys.readouterr().err
    monkeypatch.setattr(profile.shutil, "which", lambda name: None)
    assert profile.main([]) == 2
    assert "ncu is not on PATH" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
