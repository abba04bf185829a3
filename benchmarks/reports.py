"""Run all five reports on a few drawn birds, with the batch killed on the way: is a row ever lost?

    python -m benchmarks.reports [--kills 5] [--jobs 2] [--folder runs/reports]

The batch gets SIGKILL after each of KILLS equal parts of its rows, and is started again at once.
Prints the time of all together, the rows that failed, and those that had finished before a kill
and were run again after it (none is right).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from helpers import ROOT
from helpers.report.rows import EXPERIMENTS, load_all

OPTIONS = ["--dataset", "tiny_species", "--set", "epochs=1"]


def ended(folder: Path) -> dict[str, str]:
    """Return when each finished execution ended."""
    found = {}
    for path in (folder / "batch").glob("*/*/status.json"):
        status = json.loads(path.read_text(encoding="utf-8"))
        if status["state"] == "finished":
            found[str(path.parent.relative_to(folder))] = status["time"]
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", default="runs/reports", help="a new one")
    options = parser.parse_args()
    folder = ROOT / options.folder
    if folder.exists():
        sys.exit(f"{folder} is there already: delete it, or choose another --folder")
    files = [str(path) for path in sorted(EXPERIMENTS.glob("r[0-9]*.yaml"))]
    command = [sys.executable, "-m", "helpers.report.batch", *files, *OPTIONS,
               "--jobs", str(options.jobs), "--runs-root", options.folder]  # fmt: skip
    total = sum(len(row.points) for row in load_all())
    begun = time.monotonic()
    seen: dict[str, str] = {}
    for kill in range(1, options.kills + 1):
        batch = subprocess.Popen(command, cwd=ROOT)
        while len(ended(folder)) < kill * total // (options.kills + 1) and batch.poll() is None:
            time.sleep(1)
        batch.kill()
        batch.wait()
        before = ended(folder)
        seen = {**before, **seen}
        print(f"killed after {len(before)} of {total}", flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    after = ended(folder)
    lost = [name for name, when in seen.items() if after.get(name) != when]
    minutes = (time.monotonic() - begun) / 60
    print(f"{len(after)} of {total} finished in {minutes:.1f} min with {options.kills} kills, exit "
          f"code {code}; finished rows that were lost or run again: {len(lost)}")  # fmt: skip


if __name__ == "__main__":
    main()
