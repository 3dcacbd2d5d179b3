"""Sphinx configuration of the FastAttention book.

Every page is executed while it is built, warnings are errors (the Makefile passes ``-W --keep-going``), and
the built book asks nothing of any other host: MathJax is in ``_static/mathjax``, pages draw their figures.
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE / "_build"


def pin_kernel(folder: Path) -> None:
    """Make pages run in the interpreter that runs Sphinx, whatever kernels are installed elsewhere."""
    spec = folder / "kernels" / "fastattention-book"
    spec.mkdir(parents=True, exist_ok=True)
    kernel = {
        # Its remark on unencrypted sockets, which never leave this machine, is no warning about the book.
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"],
        "display_name": "The FastAttention book",
        "language": "python",
    }
    (spec / "kernel.json").write_text(json.dumps(kernel, indent=1), encoding="utf-8")
    os.environ["JUPYTER_PATH"] = str(folder)
    # A reader's own IPython start-up files must not change what the book shows. Ours makes a cell's text
    # arrive in one piece: MyST-NB breaks the line where two pieces meet.
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "book.py").write_text("import sys\n\nsys.stdout.flush_interval = 60\n", encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(folder / "ipython")
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")


pin_kernel(BUILD / "jupyter")
# ``python -m sphinx`` puts the checkout on the path, where fastattention/ lies without its kernels.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE.parent]

project = "FastAttention"
author = "The FastAttention authors"
project_copyright = author
release = installed_version("fastattention")
version = release

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_design",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
language = "en"
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}  # the first is what autosummary writes
default_role = None

# -- Pages that run --------------------------------------------------------------------------------
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_render_markdown_format = "myst"  # tables and formulas, in what cells display, too
nb_kernel_rgx_aliases = {"python3": "fastattention-book"}
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # the default fetches require.js from another host
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"version": release}

# -- Mathematics, offline --------------------------------------------------------------------------
mathjax_path = "mathjax/startup.js"
mathjax3_config = {
    "loader": {"load": ["core", "input/tex", "output/svg", "a11y/assistive-mml"]},
    # Extensions are not vendored: an unknown macro shows in red and asks for no file.
    "tex": {"packages": {"[-]": ["autoload", "require"]}},
    "svg": {"fontCache": "global"},
}

# -- API -------------------------------------------------------------------------------------------
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the numpydoc sections say shapes and units, which annotations cannot
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
add_module_names = False

nitpicky = True
# No inventory of another project is fetched, so that the book builds without a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(numpy|np|torch|jax|collections|typing|pathlib|argparse|ml_dtypes)(\..*)?"),
    (r"py:.*", r"(ndarray|array_like|scalar|optional|int|float|bool|str|dict|list|tuple|callable|iterable)"),
]

# -- Look ------------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
html_title = "FastAttention"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["page.js", "steps.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
html_sidebars = {
    page: []
    for page in (
        "index",
        "install",
        "cli",
        "glossary",
        "hardening",
        "bibliography",
        "changelog",
        "contributing",
        "SECURITY",
    )
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is, until they choose
html_theme_options = {
    "logo": {"text": "FastAttention"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-dark",
}


def skip_field_aliases(
    app: Any, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out a named tuple's fields, of which Python only says "Alias for field number 0"."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def keep_initials(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep a letter with a full stop that begins a line ("L.", "G. Xiao") from becoming a list."""
    lines[:] = [re.sub(r"^(\s*(?:\.\. \[[^\]]+\] )?)([A-Z]\.(?: |$))", r"\1\\\2", line) for line in lines]


def setup(app: Any) -> None:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", keep_initials, priority=900)  # numpydoc's comes first
    app.connect("autodoc-skip-member", skip_field_aliases)
