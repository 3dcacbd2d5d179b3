"""What the README and the book promise, as far as it can be checked without building the book."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fastattention.bench import results
from fastattention.bench.cases import Case
from fastattention.bench.memory import Memory
from fastattention.bench.rows import select
from fastattention.bench.targets import judge

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUILT = {"_build", "_static", "generated"}
PAGES = sorted(path for path in DOCS.rglob("*.md") if not BUILT & set(path.parts))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
CHAPTERS = sorted((DOCS / "book").glob("[0-9]*.md"))
HTML = DOCS / "_build" / "html"


def load_script() -> ModuleType:
    """Import docs/update_readme.py, which is a script and no package's module."""
    spec = importlib.util.spec_from_file_location("update_readme", DOCS / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- README ----------------------------------------------------------------------------------------


def run_snippet(code: str, folder: Path) -> str:
    """Run code as a reader would, in `folder`, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_readme_example_runs_and_agrees_with_the_reference(tmp_path: Path) -> None:
    output = run_snippet(snippets()[0], tmp_path)  # outside the checkout: the installed package's example
    assert "(1, 8, 512, 64)" in output
    assert float(output.split()[-1]) < 1e-5


def test_readme_verification_runs_from_the_checkout(tmp_path: Path) -> None:
    verify = snippets()[1]
    run_snippet(verify, ROOT)
    broken = verify.replace("/ np.sqrt(q.shape[-1])", "")
    assert broken != verify
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        run_snippet(broken, ROOT)


def test_readme_has_no_other_python_snippet() -> None:
    assert len(snippets()) == 2, "a new snippet needs a test that runs it"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    used = re.findall(r"^make ([a-z-]+)", "\n".join(blocks), flags=re.MULTILINE)
    assert set(used) <= targets


def test_readme_links_to_files_that_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


# -- Results in the README -------------------------------------------------------------------------


def sample_run(date: str = "2026-01-02T03:04:05+00:00") -> results.Run:
    # The medians of all calls say 90.9 GFLOP/s and 2.27 times; the rounds, which count, 80 % and 2.5 times.
    prefill = results.Row(
        case=Case("prefill", "float32", 8, 8, 4096, 4096, 128, causal=True),
        useful_flops=10**9,
        error=1e-7,
        rounds=[[0.010], [0.011, 0.011, 0.011], [0.0125]],
        limit_name="FMA",
        limits=[100.0, 150.0, 77.2727273, 113.2034632],
        target=70.0,
        peers={
            "PyTorch": results.PeerResult("ok", "some operator", 1e-7, [[0.025], [0.011], [0.04]]),
            "ONNX Runtime": results.PeerResult("failed", "wrong output"),
            "OpenVINO": results.PeerResult("unsupported", "no such case"),
        },
    )
    short = results.Row(
        case=Case("decode", "bfloat16", 32, 32, 1, 1024, 128),
        useful_flops=10**6,
        error=1e-7,
        rounds=[[0.010]],
        limit_name="read",
        limits=[10.0, 10.0],
        target=None,
        peers={},
    )
    environment = {
        "cpu": "A Processor",
        "cores": 4,
        "allowed_cores": 2,
        "isa": "avx2",
        "compiler": "gcc 12",
        "versions": {"fastattention": "0.1.0", "numpy": np.__version__},
    }
    memory = Case("memory", "float32", 8, 8, 131072, 131072, 128, causal=True, threads=2)
    run = results.Run(date=date, environment=environment, options={}, rows=[prefill, short])
    run.memory.append(Memory(memory, 2**20, 2 * 2**20, 10 * 2**20, "how"))
    run.left_out.update({"a/b": "no such unit", "a/c": "no such unit"})
    run.goals.extend(judge(run))
    return run


def write_readme(folder: Path) -> Path:
    readme = folder / "README.md"
    text = "# Title\n\n<!-- results:begin -->\nold\n<!-- results:end -->\n\nAfter\n"
    readme.write_text(text, encoding="utf-8")
    return readme


def test_update_readme_knows_the_schema_of_the_benchmark() -> None:
    assert load_script().SCHEMAS == results.READABLE


def test_update_readme_fills_in_the_newest_run(tmp_path: Path) -> None:
    script, readme = load_script(), write_readme(tmp_path)
    results.save(sample_run(), tmp_path / "bench-a.json")
    results.save(sample_run("2025-01-01T00:00:00+00:00"), tmp_path / "bench-z.json")
    call = ["--readme", str(readme), "--results", str(tmp_path)]

    assert script.main([*call, "--check"]) == 1
    assert "old" in readme.read_text(encoding="utf-8"), "--check must not write"
    assert script.main(call) == 0
    assert script.main([*call, "--check"]) == 0

    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# Title\n")
    assert text.endswith("\nAfter\n")
    assert "old" not in text
    assert "A Processor, 2 of 4 cores, instruction set avx2, gcc 12; 2026-01-02; fastattention 0.1.0" in text
    row = "| float32 | causal | 8 | 128 | 4096 | 1 | 11 | 90.9 | 80 % of FMA | ±2 % | 70 % met, 2.3× met "
    assert row + "| 2.50× | wrong | none |" in text
    assert "| of limit | spread | target | PyTorch | ONNX Runtime | OpenVINO |" in text
    assert "bfloat16" not in text, "the README shows a dozen rows, of 4096 keys or more"
    assert "Targets: 2 of 3 met, over all rows." in text
    assert "(131072 keys, 2 threads): planned 2.00 MiB a thread, measured 5.00." in text
    assert "Not on this machine: 2 rows; no such unit." in text


def test_update_readme_reads_files_from_before_there_were_targets(tmp_path: Path) -> None:
    script = load_script()
    run = sample_run()
    run.goals.clear()
    run.memory.clear()
    run.left_out.clear()
    content = json.loads(json.dumps(results.to_json(run)))
    content["schema"] = 2
    for name in ("goals", "memory", "left_out"):
        del content[name]
    for row in content["rows"]:
        for name in ("batch", "v_dim", "page_size", "isa"):
            del row["case"][name]
        for name in ("isa", "roofline", "alone"):
            del row[name]
    (tmp_path / "bench-old.json").write_text(json.dumps(content), encoding="utf-8")
    text = script.section(script.newest(tmp_path))
    assert "| 11 | 90.9 | 80 % of FMA | ±2 % | 2.50× | wrong | none |" in text
    assert "arget" not in text
    assert results.load(tmp_path / "bench-old.json") == run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "full"),
        ({"window": (1024, 0), "causal": True}, "window of 1025"),
        ({"mask": "bool"}, "bool mask"),
        ({"batch": 8, "q_len": 4}, "full, batch of 8, 4 queries"),
        ({"page_size": 16, "isa": "avx2"}, "full, pages of 16, by avx2"),
    ],
)
def test_rows_are_labelled(changes: dict[str, object], words: str) -> None:
    case = replace(Case("decode", "float32", 32, 8, 1, 4096, 128), **changes)
    assert load_script().label(asdict(case)) == words


def test_the_readme_shows_about_a_dozen_rows_of_each_kind() -> None:
    shown = [case.kind for case in select(2) if load_script().headline(asdict(case))]
    assert 9 <= shown.count("prefill") <= 13
    assert 9 <= shown.count("decode") <= 14


def test_update_readme_without_results_says_so(tmp_path: Path) -> None:
    readme = write_readme(tmp_path)
    assert load_script().main(["--readme", str(readme), "--results", str(tmp_path / "none")]) == 0
    assert "No measurement is committed yet" in readme.read_text(encoding="utf-8")


def test_update_readme_refuses_other_schemas_and_missing_markers(tmp_path: Path) -> None:
    script, readme = load_script(), write_readme(tmp_path)
    (tmp_path / "bench-new.json").write_text(json.dumps({"schema": 99, "date": "2026"}), encoding="utf-8")
    with pytest.raises(ValueError, match="schema 99"):
        script.main(["--readme", str(readme), "--results", str(tmp_path)])
    for text in ("", script.BEGIN, f"{script.END}{script.BEGIN}", f"{script.BEGIN}{script.END}{script.END}"):
        with pytest.raises(ValueError, match="README"):
            script.fill(text, "x")


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="not a git checkout: nothing says which results are committed"
)
def test_readme_shows_the_newest_committed_run(tmp_path: Path) -> None:
    # A reader's own `make bench` leaves a file beside the committed ones; it must not fail their tests.
    command = [
        "git",
        "-c",
        f"safe.directory={ROOT}",
        "ls-files",
        "results/bench-*.json",
        "results/offload-*.json",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        shutil.copy(ROOT / name, tmp_path)
    assert load_script().main(["--check", "--results", str(tmp_path)]) == 0, (
        "run python docs/update_readme.py"
    )


# -- Pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_follow_the_template(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    parts = ["**What you'll do.**", "**What you'll learn.**", "**What you'll need.**"]
    parts += ["## On your own", "## In practice", "## Further reading", "## The source", "{literalinclude}"]
    places = [text.rfind(part) for part in parts]  # chapters may quote sources earlier, too
    assert -1 not in places, [part for part, place in zip(parts, places, strict=True) if place == -1]
    assert places == sorted(places)
    questions = re.findall(r"^\d\. ", text[text.index("## On your own") :], flags=re.MULTILINE)
    assert len(questions) == text.count(":::{dropdown} Answer") > 0


SPEED = re.compile(r"\d\s*(?:[TG]FLOP/s|GOP/s|GB/s|tok(?:en)?s?/s|tokens a second|ms a token|×|times faster)")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_speed_in_prose(path: Path) -> None:
    script, text = load_script(), path.read_text(encoding="utf-8")
    prose = script.fill(text, "") if script.BEGIN in text and path.name == "README.md" else text
    assert SPEED.findall(prose) == []


def test_speeds_are_noticed() -> None:
    for text in ("reaches 180 GFLOP/s", "1.5× faster", "35 ms a token", "3 times faster"):
        assert SPEED.search(text)


# -- The built book --------------------------------------------------------------------------------


class Assets(HTMLParser):
    """Collect what a browser would fetch to show a page: scripts, style sheets, images, frames, fonts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "embed", "video", "audio", "object"):
            self.found += [values.get("src") or "", values.get("data") or ""]
            choices = (values.get("srcset") or "").split(",")
            self.found += [choice.split()[0] for choice in choices if choice.strip()]
        if tag == "link" and values.get("rel") not in (
            "index",
            "search",
            "next",
            "prev",
            "canonical",
            "author",
        ):
            self.found.append(values.get("href") or "")
        self.found += re.findall(r"url\(['\"]?([^'\")]+)", values.get("style") or "")


def foreign(page: str) -> list[str]:
    parser = Assets()
    parser.feed(page)
    return [asset for asset in parser.found if asset.startswith(("http:", "https:", "//"))]


def test_foreign_assets_are_noticed() -> None:
    assert foreign('<script src="https://a.b/c.js"></script>') == ["https://a.b/c.js"]
    assert foreign('<img src="d.png" srcset="//a.b/c.png 2x">') == ["//a.b/c.png"]
    assert foreign('<link rel="stylesheet" href="http://a.b/c.css">') == ["http://a.b/c.css"]
    assert foreign('<a href="https://a.b/">a link</a><script src="../_static/c.js"></script>') == []


needs_book = pytest.mark.skipif(not (HTML / "index.html").exists(), reason="the book is not built: make docs")


@needs_book
def test_built_book_loads_nothing_from_other_hosts() -> None:
    pages = sorted(HTML.rglob("*.html"))
    assert len(pages) > 10
    found = {str(page.relative_to(HTML)): foreign(page.read_text(encoding="utf-8")) for page in pages}
    assert {page: assets for page, assets in found.items() if assets} == {}
    for sheet in HTML.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^'\")]+", text) == [], sheet


@needs_book
def test_built_book_sets_mathematics_with_files_of_its_own() -> None:
    page = (HTML / "book" / "01-attention-by-hand.html").read_text(encoding="utf-8")
    assert "../_static/mathjax/startup.js" in page
    config = re.search(r"window\.MathJax = (\{.*?\})</script>", page)
    assert config is not None
    parts = json.loads(config[1])["loader"]["load"]
    assert parts
    for part in parts:
        assert os.path.getsize(HTML / "_static" / "mathjax" / f"{part}.js") > 1000


@needs_book
def test_figures_have_a_text() -> None:
    for chapter in CHAPTERS:
        page = (HTML / "book" / f"{chapter.stem}.html").read_text(encoding="utf-8")
        figures = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
        assert len(figures) >= 2
        assert all(len(text) > 20 for text in figures)
