"""Test the ends of what requirements.txt allows: the oldest versions and the newest.

    make check-bounds                                  # or, in parts:
    python tests/check_bounds.py lowest --python python3.10 -- -k "not notebooks"

Each end gets a fresh environment in a temporary folder (5 GB, with torch) and runs all tests, with
whatever follows `--` given to pytest. "lowest" puts == for every >= of requirements.txt.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENDS = {"lowest": "python3.10", "newest": sys.executable}


def requirements(end: str) -> list[str]:
    """Return requirements.txt's lines, at the lowest versions or as they are."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.partition("#")[0].strip() for line in lines]
    return [line.replace(">=", "==") if end == "lowest" else line for line in lines if line]


def check(end: str, python: str, options: list[str]) -> int:
    """Install one end and run the tests there; returns pytest's exit status."""
    if not shutil.which(python):
        sys.exit(f"{python} is not here: give another interpreter by --python")
    with tempfile.TemporaryDirectory(prefix=f"bounds-{end}-") as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        here = Path(folder, "Scripts" if os.name == "nt" else "bin", "python")
        subprocess.run([
            here, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            *requirements(end), "-r", ROOT / "requirements-dev.txt",
        ], check=True)  # fmt: skip
        frozen = subprocess.check_output([here, "-m", "pip", "freeze"], text=True)
        names = {re.split("[>=]", line)[0].lower() for line in requirements(end)}
        print(end, *(v for v in frozen.split() if v.split("==")[0].lower() in names))
        tests = [here, "-m", "pytest", "-q", *options]
        return subprocess.run(tests, cwd=ROOT, check=False).returncode


def main() -> None:
    """Check the ends that are named, or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ends", nargs="*", help="lowest, newest; by default both")
    parser.add_argument("--python", help="interpreter, by default python3.10 and this one")
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    chosen = parser.parse_args(own)
    ends = chosen.ends or ENDS
    failed = [end for end in ends if check(end, chosen.python or ENDS[end], options)]
    if failed:
        sys.exit(f"the tests fail with the {' and the '.join(failed)} versions")


if __name__ == "__main__":
    main()
