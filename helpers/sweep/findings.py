"""What a sweep found, from its run folders alone: one-factor comparisons and importance.

Two runs make a pair of a parameter when they are equal in everything else. Pairs tell what a
parameter does; importance and correlation only tell what went along with good runs.
"""

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from helpers.evaluate.intervals import NO_EVIDENCE, mean_and_interval, verdict
from helpers.runs.config import NO_EFFECT, Config, ConfigError
from helpers.runs.folder import Run
from helpers.runs.search import json_of, shorten, varied
from helpers.sweep.file import best_of, goal_of

# Fewer pairs cannot tell: five of equal sign happen by chance in 1 of 16 cases, six in 1 of 32.
FEWEST_PAIRS = 6


@dataclass(frozen=True)
class Comparison:
    """What changing a parameter from `baseline` to `value` does to the metric, all else equal.

    `mean` and its 95 % interval from `low` to `high` are nan without pairs.
    """

    parameter: str
    value: object
    baseline: object
    metric: str
    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_evidence(self) -> bool:
        """Say whether there are enough pairs and the interval leaves out 0."""
        return self.pairs >= FEWEST_PAIRS and verdict(self.low, self.high) != NO_EVIDENCE

    def __str__(self) -> str:
        name = self.parameter.replace("_", " ").capitalize()
        if not (self.value is True and self.baseline is False):  # 1 and 0 are equal to them
            name += f" {shorten(self.value)} instead of {shorten(self.baseline)}"
        pairs = f"{self.pairs} pair{'s' * (self.pairs != 1)}"
        if self.pairs < FEWEST_PAIRS:
            return f"{name}: no evidence, {pairs} of at least {FEWEST_PAIRS}"
        text = f"{_worded(self)}, {pairs}"
        return f"{name}: {text}" if self.is_evidence else f"{name}: no evidence, {text}"


def value_of(run: Run, metric: str = "val_accuracy", epochs: int | None = None) -> float:
    """Return the best value of a metric in a run's first `epochs` epochs, by default in all."""
    return best_of([row[metric] for row in run.history[:epochs]], metric)


def compare(runs: list[Run], metric: str = "val_accuracy") -> list[Comparison]:
    """Compare the values of every parameter by the pairs of runs that are equal in all else.

    A run that a sweep ended early is compared with its partner's epochs up to there. For yes and
    no, and numbers, the larger value is compared with the smaller one.
    """
    comparisons = []
    for parameter, values in varied(runs).items():
        pairs = _pairs(runs, parameter)
        for baseline, value in itertools.combinations(values, 2):
            found = pairs.get((json_of(baseline), json_of(value)), [])
            if found or len(values) == 2:
                differences = [_difference(*pair, metric) for pair in found]
                mean, low, high = mean_and_interval(np.array(differences))
                comparisons.append(
                    Comparison(parameter, value, baseline, metric, mean, low, high, len(found))
                )
    return comparisons


@dataclass(frozen=True)
class Interaction:
    """How much more one parameter's change brings where another one is changed, too.

    `mean` and its 95 % interval are of (both - second alone) - (first alone - neither), over
    `squares` of four runs that are equal in all else; nan where there are none.
    """

    first: str
    second: str
    metric: str
    mean: float
    low: float
    high: float
    squares: int

    @property
    def is_evidence(self) -> bool:
        """Say whether the interval leaves out 0; two equal squares have none, by luck."""
        return self.high - self.low > 1e-6 and verdict(self.low, self.high) != NO_EVIDENCE

    def __str__(self) -> str:
        names = f"{self.first} and {self.second}".replace("_", " ").capitalize()
        found = "a hint of an interaction" if self.is_evidence else "no evidence of an interaction"
        squares = f"{self.squares} square{'s' * (self.squares != 1)}"
        return f"{names} together: {_worded(self)}, {squares}: {found}"


def interactions(runs: list[Run], metric: str = "val_accuracy") -> list[Interaction]:
    """Compare, for every two parameters of two values each, the effect of one in both others.

    Four runs of which a sweep ended some early are compared by their epochs up to there. Pairs of
    parameters with a square come first, the largest mean on top.
    """
    two = {name: values for name, values in varied(runs).items() if len(values) == 2}
    found = []
    for (first, values), (second, others) in itertools.combinations(two.items(), 2):
        groups: dict[str, dict] = defaultdict(dict)
        for run in runs:
            rest = _rest(run.config, first, second)
            place = (values.index(getattr(run.config, first)),
                     others.index(getattr(run.config, second)))  # fmt: skip
            groups[rest][place] = run
        differences = []
        for group in groups.values():
            if len(group) == 4:
                epochs = _common_epochs(*group.values())
                v = {place: value_of(run, metric, epochs) for place, run in group.items()}
                differences.append((v[1, 1] - v[0, 1]) - (v[1, 0] - v[0, 0]))
        interval = mean_and_interval(np.array(differences))
        found.append(Interaction(first, second, metric, *interval, len(differences)))
    return sorted(found, key=lambda x: -abs(x.mean) if x.squares else 0)


def search_against_random(
    searched: list[float], pool: list[float], draws: int = 10_000
) -> tuple[np.ndarray, float]:
    """Compare a search, its values in order (larger is better), with random choices of a pool.

    Returns the best so far of random orders (draws, n), and the share of them whose mean over the
    n runs is at least that of the search: how often chance alone would have been as quick.
    """
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(pool, (draws, 1)), axis=1)[:, : len(searched)]
    best = np.maximum.accumulate(orders, axis=1)
    reached = np.maximum.accumulate(searched).mean()
    return best, float((best.mean(1) >= reached - 1e-12).mean())


def plan(runs: list[Run], pairs: int, metric: str = "val_accuracy") -> list[Config]:
    """Return the configurations to train so that every parameter gets `pairs` pairs.

    Of each parameter, the two values are compared that need the fewest runs; one with mostly
    different values (drawn from a range) is left out. Each step adds the run that completes the
    most missing pairs, and runs with a good value of the metric are completed first.
    """
    large_first = goal_of(metric) == "maximize"
    order = sorted(runs, key=lambda run: value_of(run, metric), reverse=large_first)
    configs = {_rest(run.config): run.config for run in order}
    wanted = {name: _target(runs, name, values) for name, values in varied(runs).items()
              if 2 * len(values) <= len(runs) or len(values) == 2}  # fmt: skip
    planned: list[Config] = []
    while True:
        gains: Counter = Counter()
        candidates: dict[str, Config] = {}
        for name, target in wanted.items():
            partners = [(c, _partner(c, name, target)) for c in configs.values()]
            partners = [(c, p) for c, p in partners if p is not None]
            complete = sum(_rest(p) in configs for _, p in partners) // 2
            if complete >= pairs:
                continue
            for _, partner in partners:
                key = _rest(partner)
                if key not in configs:
                    candidates.setdefault(key, partner)
                    gains[key] += 1
        if not gains:
            return planned
        key = gains.most_common(1)[0][0]
        configs[key] = candidates[key].replace(name=f"pair-{candidates[key].id}")
        planned.append(configs[key])


def importance(runs: list[Run], metric: str = "val_accuracy") -> list[dict]:
    """Say which parameters went along with the metric, the most important first.

    Rows of `name`, `importance` (of a random forest that predicts the metric, adds up to 1) and
    `correlation` (Pearson's, -1 to 1), as in wandb's panel
    (https://docs.wandb.ai/guides/app/features/panels/parameter-importance): a number or a switch
    is one row, any other parameter a row for each value.
    """
    columns, names = [], []
    for parameter, values in varied(runs).items():
        of_runs = [getattr(run.config, parameter) for run in runs]
        if all(isinstance(value, bool | int | float) for value in values):
            names.append(parameter)
            columns.append([float(value) for value in of_runs])
        else:
            names += [f"{parameter} {shorten(value)}" for value in values]
            columns += [[float(json_of(v) == json_of(value)) for v in of_runs] for value in values]
    target = np.array([value_of(run, metric) for run in runs])
    if not names or np.ptp(target) == 0:
        return []
    forest = RandomForestRegressor(200, random_state=0).fit(np.transpose(columns), target)
    rows = [
        {"name": name, "importance": float(share),
         "correlation": float(np.corrcoef(column, target)[0, 1])}
        for name, column, share in zip(names, columns, forest.feature_importances_, strict=True)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["importance"])


def _pairs(runs: list[Run], parameter: str) -> dict[tuple, list]:
    """Group the pairs of runs that differ in one parameter alone by their two values."""
    groups = defaultdict(dict)
    for run in runs:
        groups[_rest(run.config, parameter)][json_of(getattr(run.config, parameter))] = run
    pairs = defaultdict(list)
    for group in groups.values():
        for first, second in itertools.permutations(group, 2):
            pairs[first, second].append((group[first], group[second]))
    return pairs


def _worded(found: Comparison | Interaction) -> str:
    """Write a mean and its interval, those of accuracies in points."""
    points = found.metric.endswith("accuracy")
    scale, digits, unit = (100, 1, " points") if points else (1, 3, "")
    mean, low, high = (scale * number for number in (found.mean, found.low, found.high))
    return f"{mean:+.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def _common_epochs(*runs: Run) -> int | None:
    """Return the epochs that all runs have had where a sweep ended some early; None for all."""
    return min((r.status["stopped_at"] for r in runs if "stopped_at" in r.status), default=None)


def _difference(first: Run, second: Run, metric: str) -> float:
    epochs = _common_epochs(first, second)
    return value_of(second, metric, epochs) - value_of(first, metric, epochs)


def _target(runs: list[Run], parameter: str, values: list) -> tuple:
    """Return the two values with the most pairs, and among those with the most runs."""
    pairs = _pairs(runs, parameter)
    counts = Counter(json_of(getattr(run.config, parameter)) for run in runs)

    def score(two: tuple) -> tuple:
        first, second = map(json_of, two)
        return len(pairs.get((first, second), [])), counts[first] + counts[second]

    return max(itertools.combinations(values, 2), key=score)


def _partner(config: Config, parameter: str, target: tuple) -> Config | None:
    """Return the configuration with the other one of two values, if that can work."""
    own = json_of(getattr(config, parameter))
    others = [value for value in target if json_of(value) != own]
    if len(others) != 1:
        return None
    try:
        return config.replace(**{parameter: others[0]})
    except ConfigError:
        return None


def _rest(config: Config, *parameters: str) -> str:
    """Write all parameters but these, to be compared."""
    return json_of(config.model_dump(exclude=NO_EFFECT.union(parameters)))
