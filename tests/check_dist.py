"""Whether what would be published can be trusted: what ``make dist-check`` runs.

The last commit is cloned into a temporary folder. There the sdist is built, and from it the wheel, each with
no more than pyproject.toml asks for. What they hold is compared with what git knows; tools look at the
metadata and at the symbols; the wheel is installed and tried by every Python of this machine, with the oldest
and the newest of what it requires; ``mypy --strict`` reads a program that uses it; and builds that lack a
compiler, or something else that they need, have to say so.

    python tests/check_dist.py [--quick] [--keep]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from dist import build, content, install, lacking
from dist.steps import ROOT, Steps, output


def check(place: build.Place, quick: bool) -> list[str]:
    """Take every step that can be taken, or those that compile nothing; return the names of the failed."""
    step = Steps()
    if not step("clone", partial(build.clone, place)) or not step("sdist", partial(build.sdist, place)):
        return step.failed
    for name, check_lacking in lacking.cases(place).items():
        step(name, check_lacking)
    step("what is in the sdist", partial(content.sdist, place))
    if quick:
        step("metadata (twine)", partial(build.metadata, place, place.sdist))
        return step.failed
    if not step("wheel from the sdist", partial(build.wheel, place)):
        return step.failed
    step("metadata (twine)", partial(build.metadata, place, place.sdist, place.wheel))
    step("what is in the wheel", partial(content.wheel, place))
    step("shared libraries", partial(content.libraries, place))
    step("stable interface (abi3audit)", partial(content.stable_interface, place))
    step("system libraries (auditwheel)", partial(content.system_libraries, place))
    running, *others = install.pythons(place)
    environments = [install.Environment(place, running, oldest) for oldest in (True, False)]
    environments += [install.Environment(place, python, oldest=False) for python in others]
    for environment in environments:
        if step(environment.name, environment.make) and environment.python is running:
            step(f"types (mypy --strict), {environment.name}", environment.types)
    return step.failed


def main() -> int:
    """Check; return 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what compiles nothing: half a minute")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    args = parser.parse_args()
    if changed := output("git", "status", "--porcelain", cwd=ROOT).rstrip():
        print(f"Checked is the last commit, without these changes:\n{changed}\n")
    folder = Path(tempfile.mkdtemp(prefix="fastattention-dist-"))
    try:
        failed = check(build.Place(folder), args.quick)
    finally:
        if args.keep:
            print("Kept:", folder)
        else:
            shutil.rmtree(folder)
    print(f"Failed: {', '.join(failed)}" if failed else "All is well.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
