"""Keep what was measured."""

import json

from helpers import ROOT
from helpers.models.device import environment


def keep(name: str, /, **content) -> None:
    """Write what was measured, and on what machine, into runs/benchmarks/NAME.json."""
    path = ROOT / "runs" / "benchmarks" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "environment": environment()}, indent=1) + "\n")
