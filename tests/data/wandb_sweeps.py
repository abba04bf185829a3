"""Write what wandb's own package decides, for tests/test_sweep_file.py to compare with.

    python -m venv OTHER && OTHER/bin/pip install sweeps==0.3.0
    OTHER/bin/python tests/data/wandb_sweeps.py

`sweeps` needs numpy below 2, so it is no requirement of this project.
"""

import json
import random
from importlib import metadata
from pathlib import Path

from sweeps.hyperband_stopping import hyperband_stop_runs

from sweeps import SweepRun, next_runs

RULES = [
    {"min_iter": 1},
    {"min_iter": 1, "eta": 2},
    {"min_iter": 2, "eta": 2},
    {"min_iter": 3, "eta": 1.5},
    {"min_iter": 2, "eta": 4, "strict": False},
    {"min_iter": 1, "eta": 2, "strict": False},
    {"max_iter": 9, "s": 2},
    {"max_iter": 9, "s": 2, "strict": False},
    {"max_iter": 27, "s": 3},
    {"max_iter": 12, "s": 10, "eta": 2},
    {"max_iter": 10, "s": 2, "eta": 2, "strict": True},
    {"max_iter": 7, "s": 2, "eta": 1.5, "strict": False},
]
GRIDS = [
    {"lr": {"values": [0.1, 0.01]}},
    {"lr": {"values": [0.1, 0.01]}, "dropout": {"values": [0.0, 0.2, 0.5]}},
    {"optimizer": {"values": ["sgd", "adam"]}, "epochs": {"value": 3}},
    {"batch_norm": {"values": [True, False]}, "activation": {"values": ["relu", "gelu", "silu"]}},
    {"epochs": {"min": 1, "max": 4}},
    {"epochs": {"distribution": "int_uniform", "min": 2, "max": 3}, "seed": {"values": [0, 1]}},
    {"batch_size": {"distribution": "q_uniform", "min": 16, "max": 64, "q": 16}},
    {"dropout": {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.1}},
    {"filters": {"values": [[8] * 5, [8, 16, 32, 64, 128]]}, "dense": {"values": [32, [64, 32]]}},
    {"seed": {"values": [1, 1, 2]}},
    {
        "optimizer": {"values": ["sgd", "adam"]},
        "model": {"values": ["five_blocks"]},
        "batch_size": {"values": [64, 32]},
        "augment": {"values": [[], ["horizontal_flip"]]},
    },
    {
        "training": {"parameters": {"lr": {"values": [0.1, 0.2]}, "epochs": {"value": 2}}},
        "network": {"parameters": {"dropout": {"values": [0.0, 0.1]}}},
        "seed": {"values": [0, 1]},
    },
]


def decide(rule: dict, goal: str, rng: random.Random) -> dict:
    """Make up some histories and record which runs wandb stops if they run on."""
    histories = [
        [round(rng.uniform(0, 1), 2) for _ in range(rng.randint(1, 14))]
        for _ in range(rng.randint(1, 9))
    ]
    runs = [
        SweepRun(name=str(i), state="running", history=[{"val_accuracy": v} for v in history])
        for i, history in enumerate(histories)
    ]
    config = {
        "method": "random",
        "metric": {"name": "val_accuracy", "goal": goal},
        "early_terminate": {"type": "hyperband", **rule},
        "parameters": {"lr": {"min": 0.0, "max": 1.0}},
    }
    stopped = [int(run.name) for run in hyperband_stop_runs(runs, config)]
    return {"rule": rule, "goal": goal, "histories": histories, "stopped": stopped}


def flatten(config: dict) -> dict:
    """Return the innermost names and values of a run's configuration."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= {name: value["value"]} if list(value) == ["value"] and not isinstance(
                value["value"], dict) else flatten(value)  # fmt: skip
        else:
            flat[name] = value
    return flat


def list_grid(parameters: dict) -> dict:
    """Record the points of a grid in the order in which wandb hands them out."""
    config = {"method": "grid", "parameters": parameters}
    points = [run for run in next_runs(config, [], n=1000) if run is not None]
    return {"parameters": parameters, "points": [flatten(point.config) for point in points]}


def main() -> None:
    """Write the file."""
    rng = random.Random(0)
    version = metadata.version("sweeps")
    cases = {
        "version": version,
        "hyperband": [
            decide(rule, goal, rng)
            for rule in RULES
            for goal in ("minimize", "maximize")
            for _ in range(3)
        ],
        "grids": [list_grid(parameters) for parameters in GRIDS],
    }
    path = Path(__file__).with_name(f"wandb_sweeps_{version}.json")
    path.write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
