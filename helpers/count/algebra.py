"""Derive the five-block CNN's parameters and MACs as algebra in m, k and n.

Start with `formulas`; `cs6910_operations` reproduces another way of counting found in a report.
"""

from typing import NamedTuple

import sympy

from helpers.runs.config import Config


class Formula:
    """A count as algebra: `terms` by part of the network, and what its symbols stand for."""

    def __init__(self, terms: dict[str, list[sympy.Expr]], values: dict[sympy.Symbol, int]):
        self.terms = terms
        self.values = values
        self.expression = sympy.expand(sum(sum(part) for part in terms.values()))
        self.value = int(self.expression.subs(values))

    def growth(self, letter: str, factor: int = 2) -> float:
        """Tell how many times larger the count gets with `letter` (all m, k or n) x `factor`."""
        scaled = {s: v * factor if s.name[0] == letter else v for s, v in self.values.items()}
        return float(self.expression.subs(scaled) / self.value)

    def latex(self, factored: bool = False) -> str:
        """Write the formula part by part in the order of the layers; `factored`: k²HW(...)."""
        parts = []
        for name, terms in self.terms.items():
            common = sympy.Integer(1)
            if factored and len(terms) > 1:
                common = sympy.gcd_list(terms).as_coeff_Mul()[1].subs(sympy.Symbol("m"), 1)
            sums: dict[sympy.Expr, sympy.Expr] = {}  # like terms added up, first come first
            for term in terms:
                factor, symbols = sympy.expand(term / common).as_coeff_Mul()
                sums[symbols] = sums.get(symbols, 0) + factor
            text = " + ".join(sympy.latex(factor * rest) for rest, factor in sums.items())
            if common != 1:
                text = rf"{sympy.latex(common)} \left({text}\right)"
            parts.append(rf"\underbrace{{{text}}}_{{\text{{{name}}}}}")
        return " + ".join(parts)


def formulas(config: Config, num_classes: int) -> tuple[Formula, Formula]:
    """Derive parameters and MACs of a five-block configuration in m, k, n, H, W.

    m filters in the first block (the others as multiples of it), kernels k x k (k_1 ... k_5 where
    they differ), n dense neurons (n_1, n_2, ... where there are several). H and W stay symbols
    where every pooling halves exactly; otherwise (no padding, odd sides) the feature-map sides are
    this configuration's numbers. Raises ValueError for other models.
    """
    if config.model != "five_blocks":
        raise ValueError(f"formulas are for model 'five_blocks' alone, not '{config.model}'")
    m, height, width = sympy.symbols("m H W")
    values = {m: config.filter_list[0], height: config.image_size, width: config.image_size}
    filters = [sympy.Rational(f, config.filter_list[0]) * m for f in config.filter_list]
    kernels = _symbols("k", config.kernel_list, values, same=len(set(config.kernel_list)) == 1)
    dense = _symbols("n", config.dense_list, values, same=len(config.dense_list) == 1)
    sides = [convolved for convolved, _ in config.feature_sizes]
    halved = all(side * 2**block == config.image_size for block, side in enumerate(sides))
    parts = ("convolutions", "biases", "batch norm", "dense", "classifier")
    params: dict[str, list] = {part: [] for part in parts}
    macs: dict[str, list] = {"convolutions": [], "dense layers": []}
    channels = sympy.Integer(3)
    for block, (f, k, side) in enumerate(zip(filters, kernels, sides, strict=True)):
        area = height * width / 4**block if halved else side**2
        params["convolutions"].append(k**2 * channels * f)
        params["biases"] += [f] if config.conv_bias else []
        params["batch norm"] += [2 * f] if config.batch_norm else []
        macs["convolutions"].append(area * k**2 * channels * f)
        channels = f
    features = channels * config.pooled_size**2
    params["batch norm"] += [2 * features] if config.head_norm else []
    for name, n in [*(("dense", n) for n in dense), ("classifier", sympy.Integer(num_classes))]:
        params[name] += [features * n, n]
        params["batch norm"] += [2 * n] if config.dense_norm and name == "dense" else []
        macs["dense layers"].append(features * n)
        features = n
    params = {part: terms for part, terms in params.items() if terms}
    return Formula(params, values), Formula(macs, values)


def _symbols(letter: str, numbers: list[int], values: dict, same: bool) -> list[sympy.Symbol]:
    names = [letter if same else f"{letter}_{i}" for i in range(1, len(numbers) + 1)]
    symbols = [sympy.Symbol(name) for name in names]
    values.update(zip(symbols, numbers, strict=True))
    return symbols


class Operations(NamedTuple):
    """One layer by the CS6910 report's convention, and what leads from there to FLOPs."""

    layer: str
    reported: int
    channels: int  # left out: the layer has more input channels than 3
    additions: int  # left out: sums across channels (conv), all but the bias (dense)
    flops: int  # = reported + channels + additions = 2 x MACs


def cs6910_operations(config: Config, num_classes: int) -> list[Operations]:
    """Count five blocks as a CS6910 (IIT Madras) Assignment 2 report did, layer by layer.

    Its convention: a convolution is H_out W_out (k² + k² - 1) (3m), the multiplications and
    additions inside one k x k window, always over 3 input channels; a dense layer is its
    multiplications and biases; the softmax adds one operation a class. Use it to understand
    such reports; `count` gives the true figure.
    """
    rows = []
    channels = 3
    blocks = zip(config.filter_list, config.kernel_list, config.feature_sizes, strict=True)
    for number, (filters, kernel, (side, _)) in enumerate(blocks, start=1):
        outputs, window = side**2 * filters, 2 * kernel**2 - 1
        missing = outputs * (channels - 3) * window
        rows.append((f"conv {number}", outputs * 3 * window, missing, outputs * channels))
        channels = filters
    inputs = channels * config.pooled_size**2
    for number, units in enumerate(config.dense_list, start=1):
        rows.append((f"dense {number}", inputs * units + units, 0, inputs * units - units))
        inputs = units
    reported = inputs * num_classes + 2 * num_classes
    rows.append(("classifier", reported, 0, 2 * inputs * num_classes - reported))
    return [Operations(*row, flops=sum(row[1:])) for row in rows]
