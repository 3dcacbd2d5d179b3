"""One rank, no engine: blocks, the choice of them, and what is refused before any work."""

from __future__ import annotations

import builtins
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fastattention.reference.tiling_allreduce import Costs, projected

from fastattention.cli import main
from fastattention.runtime import launch as launcher
from fastattention.runtime.communicator import ENGINE, Single, agree, connect
from fastattention.runtime.measure_allreduce import settle
from fastattention.runtime.mpi import load_mpi
from fastattention.runtime.nccl import Nccl, load_nccl
from fastattention.runtime.tensor_parallel import measured_costs, projected_attention


class Pair(Single):
    """Rank 0 of two, whose fellow says `fellow` and has the same terms."""

    def __init__(self, fellow):
        super().__init__()
        self.size, self.fellow = 2, fellow

    def all_gather(self, item):
        return [item, self.fellow]


@pytest.fixture
def call():
    rng = np.random.default_rng(1)
    q = rng.standard_normal((2, 4, 7, 8)).astype(np.float32)
    k, v = (rng.standard_normal((2, 2, 9, 8)).astype(np.float32) for _ in "kv")
    return q, k, v, rng.standard_normal((32, 5)).astype(np.float32)


@pytest.mark.parametrize("blocks", [None, 1, 3, [1, 6], Costs(1.0, 1.0)], ids=str)
def test_blocks_do_not_change_the_answer(call, blocks):
    got = projected_attention(*call, Single(), blocks=blocks, causal=True)
    np.testing.assert_allclose(got, projected(*call, causal=True), rtol=1e-4, atol=1e-5)


def test_mask_and_lengths_move_with_the_block(call):
    mask = np.random.default_rng(2).random((1, 1, 7, 9)) < 0.7
    options = {"mask": mask, "kv_lengths": np.array([9, 4]), "causal": True}
    got = projected_attention(*call, Single(), blocks=4, **options)
    np.testing.assert_allclose(got, projected(*call, **options), rtol=1e-4, atol=1e-5)


def test_costs_are_measured(call):
    costs = measured_costs(*call, Single(), causal=True)
    # So small a call may be all overhead, when the machine has other things to do meanwhile.
    assert costs.compute >= 0
    assert costs.compute + costs.compute_overhead > 0
    assert costs.slowdown >= 1


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        (8, ValueError, "1 to Sq = 7 of them, got 8"),
        (0, ValueError, "got 0"),
        ([3, 3], ValueError, "add up to Sq = 7"),
        (2.0, ValueError, "int, sizes, Costs, or None"),
    ],
)
def test_blocks_that_do_not_fit(call, blocks, error, message):
    with pytest.raises(error, match=message):
        projected_attention(*call, Single(), blocks=blocks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_out": np.zeros((31, 5), np.float32)}, r"w_out: expected \(Hq Dv, hidden\) = \(32"),
        ({"w_out": np.zeros((32, 5))}, "w_out: expected q's dtype float32"),
        ({"k": [1.0]}, "k: expected an array of numpy, got list"),
        ({"return_lse": True}, "return_lse: no option"),
        ({"softcap": -1.0}, "softcap"),
        ({"mask": np.ones((3, 9), bool)}, "mask: expected an array that broadcasts"),
    ],
)
def test_refused(call, change, message):
    arguments = dict(zip(("q", "k", "v", "w_out"), call, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        projected_attention(**arguments, communicator=Single())


def test_agree_says_who_has_what():
    with pytest.raises(ValueError, match="q: expected the same on every rank, got 1 on rank 0, 2 on rank 1"):
        agree(Pair([None, {"q": "2"}]), {"q": "1"})
    with pytest.raises(ValueError, match="rank 1: too bad"):
        agree(Pair(["too bad", {}]), {"q": "1"})
    agree(Pair([None, {"q": "1"}]), {"q": "1"})


def _without(monkeypatch, package):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *rest, **more)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setitem(sys.modules, package, None)


def test_missing_mpi_names_the_wheel(monkeypatch):
    _without(monkeypatch, "mpi4py")
    with pytest.raises(ImportError, match=r'pip install "fastattention\[distributed\]".*mpich'):
        load_mpi()


def test_missing_cupy_names_the_wheel(monkeypatch):
    _without(monkeypatch, "cupy")
    with pytest.raises(ImportError, match="cupy-cuda12x"):
        load_nccl()


def test_connect(monkeypatch):
    monkeypatch.delenv(ENGINE, raising=False)
    assert connect().size == 1
    monkeypatch.setenv(ENGINE, "telepathy")
    with pytest.raises(RuntimeError, match="telepathy"):
        connect()


def test_nccl_outside_the_launcher(monkeypatch):
    monkeypatch.delenv("FASTATTENTION_RANK", raising=False)
    with pytest.raises(RuntimeError, match="fastattention launch --gpus"):
        Nccl()


OTHER = "import os, sys, time\nif os.environ['FASTATTENTION_RANK'] == '0': time.sleep(60)\n"
SCRIPTS = {
    "well": ("", 0, ""),
    "one fails": (OTHER + "sys.exit(5)", 5, "rank 1 ended with code 5"),
    "one raises": (OTHER + "1 / 0", 1, "ZeroDivisionError"),
    "one is killed": (OTHER + "os.kill(os.getpid(), 9)", 137, "SIGKILL"),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_processes_of_gpu_ranks(case, tmp_path, capfd):
    """No GPU is touched by a script that asks for none."""
    code, expected, message = SCRIPTS[case]
    script = tmp_path / "script.py"
    script.write_text(code)
    assert launcher.launch_gpus(2, script) == expected
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "0", __file__], "-n: expected at least 1, got 0"),
        (["-n", "2", "no.py"], "no.py: no such file"),
    ],
)
def test_launch_refuses(arguments, message, capsys):
    assert main(["launch", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_launch_without_mpiexec(monkeypatch, capsys):
    monkeypatch.setattr(launcher.shutil, "which", lambda *_, **__: None)
    assert main(["launch", "-n", "2", "--mpi", __file__]) == 2
    assert "there is no mpiexec" in (said := capsys.readouterr().err)
    assert "fastattention[distributed]" in said


def fake(tmp_path, body, monkeypatch):
    """Start two ranks whose NCCL is a folder of files and whose CuPy is NumPy; return the exit code."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport fake_nccl\n{body}"
    )
    monkeypatch.setenv("FAKE_NCCL", str(tmp_path))
    return launcher.launch_gpus(2, script)


CONNECT = "from fastattention.runtime.communicator import agree, connect\n"


def test_ranks_of_a_pretended_nccl(tmp_path, monkeypatch, capfd):
    body = (
        CONNECT
        + """
with connect() as group:
    x = group.xp.asarray([1.0 + group.rank, 2.0])
    group.all_reduce_start(x).wait()
    assert x.tolist() == [3.0, 4.0], x
    assert group.all_gather("ab" * (1 + group.rank)) == ["ab", "abab"]
    assert group.broadcast({"x": group.rank}, root=1) == {"x": 1}
    try:
        agree(group, {"n": str(group.rank)})
    except ValueError as error:
        print("refused:", error, flush=True)
    for wrong, kind in ((group.xp.asarray([[1.0, 2.0]] * 2).T, ValueError), ([1.0], TypeError)):
        try:
            group.all_reduce_start(wrong)
        except kind:
            print("refused:", kind.__name__, flush=True)
    group.barrier()
"""
    )
    assert fake(tmp_path, body, monkeypatch) == 0, capfd.readouterr().err
    assert capfd.readouterr().out.count("refused: ") == 6


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise RuntimeError('out of luck')", "out of luck"),
        ("import os; os._exit(7)", "rank 1 ended with code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
)
@pytest.mark.parametrize("when", ["before they meet", "in a group"])
def test_a_dead_rank_stops_the_others(fault, message, when, tmp_path, monkeypatch, capfd):
    """Rank 0 waits for it, in vain: to be met, or for a sum."""
    lines = ["import os", f"if os.environ['FASTATTENTION_RANK'] == '1': {fault}"]
    group = ["group = connect().__enter__()", "group.barrier()"]
    rest = "group.all_reduce_start(group.xp.asarray([1.0])).wait()"
    order = [*lines, *group] if when == "before they meet" else [*group, *lines]
    started = time.monotonic()
    assert fake(tmp_path, CONNECT + "\n".join([*order, rest]), monkeypatch) != 0
    assert time.monotonic() - started < 30
    assert message in capfd.readouterr().err


def test_strangers_are_sent_away(tmp_path, monkeypatch, capfd):
    """Somebody else calls rank 0 first: without the key, and without a word."""
    body = """
import os, socket
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
host, port = os.environ["FASTATTENTION_ADDRESS"].split(":")
if os.environ["FASTATTENTION_RANK"] == "1":
    socket.create_connection((host, int(port))).close()
    try:
        Client((host, int(port)), authkey=b"guessed")
    except (AuthenticationError, EOFError, OSError):
        print("sent away", flush=True)
"""
    assert fake(tmp_path, body + CONNECT + "with connect() as group: group.barrier()\n", monkeypatch) == 0
    assert "sent away" in capfd.readouterr().out


def test_blocks_are_chosen_by_what_they_take():
    """The costs speak for four blocks; the calls say that two are faster, or none."""
    costs = Costs(1.0, 1.0, 0.01, 0.01)

    def run(per_block):
        return lambda sizes: time.sleep(0.004 / len(sizes) + per_block * (len(sizes) - 1))

    assert settle(run(1.0), 1024, costs, Single()) == [1024]
    assert len(settle(run(0.0), 1024, costs, Single())) > 2
    assert settle(run(0.0), 1, costs, Single()) == [1]
