"""Reading the names of a notebook's parameters from the cells that it ran."""

import ast


def parameter_names(namespace: dict) -> list[str]:
    """Names assigned in the last annotated cell and in papermill's cell after it."""
    names: list[str] = []
    if "In" not in namespace:
        plain = (bool, int, float, str, list, dict, type(None))
        return [n for n, v in namespace.items() if not n.startswith("_") and isinstance(v, plain)]
    for source in reversed(namespace["In"]):
        try:
            statements = ast.parse(source).body
        except SyntaxError:  # a cell with IPython magic
            continue
        annotated = any(isinstance(node, ast.AnnAssign) for node in statements)
        if annotated or source.startswith("# Parameters"):
            for node in statements:
                targets = getattr(node, "targets", [getattr(node, "target", None)])
                names += [target.id for target in targets if isinstance(target, ast.Name)]
        if annotated:
            break
    return [name for name in dict.fromkeys(names) if name in namespace]
