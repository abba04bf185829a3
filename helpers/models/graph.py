"""A network's steps as a graph, also where its code branches on what it sees.

Start with `trace`; `fold` uses it.
"""

import copy
from collections import Counter
from collections.abc import Callable

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
UNFOLLOWED = (fx.proxy.TraceError, TypeError, RuntimeError)  # what code raises that sees no images


def trace(model: nn.Module, whole: Callable[[nn.Module], bool] = lambda module: False) -> fx.Graph:
    """Trace a network into the graph of the modules that it calls.

    A layer is one step: what has no modules inside or is derived from a layer of PyTorch, so that
    it goes on to see whether it is in training. So is each module for which `whole` is true, and
    the smallest one around code that cannot be followed without images, such as padding that
    depends on their size. Raises one of `UNFOLLOWED` where such code is in the network's own
    `forward`.
    """
    return _Tracer(whole).trace(model)


class _Tracer(fx.Tracer):
    def __init__(self, whole: Callable[[nn.Module], bool]):
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        derived = any(kind.__module__.startswith("torch.nn.modules") and kind is not nn.Module
                      for kind in type(module).__mro__)  # fmt: skip
        layer = derived and not isinstance(module, CONTAINERS)
        return layer or not list(module.children()) or self.whole(module)

    def create_proxy(self, kind: str, target, args, kwargs, *more, **named):
        if kind == "placeholder" and args:  # an argument that has a default keeps it
            return args[0]
        return super().create_proxy(kind, target, args, kwargs, *more, **named)

    def call_module(self, module: nn.Module, forward, args, kwargs):
        before, entered = set(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(module, forward, args, kwargs)
        except UNFOLLOWED:
            for node in reversed(list(self.graph.nodes)):  # back to where it was entered
                if node not in before:
                    self.graph.erase_node(node)
            self.module_stack = entered
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


def fold(model: nn.Module) -> nn.Module:
    """Return a copy of a network in eval mode with batch norms as part of the convolutions before.

    A batch norm in eval mode is a factor and a shift for each channel, which the convolution's own
    weights and bias can be: (w * x) s + t = (s w) * x + t. Only rounding differs.
    """
    model = copy.deepcopy(model)
    calls = [node for node in trace(model).nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for node in calls:
        before, norm = node.args[0], model.get_submodule(node.target)
        if before not in calls or len(before.users) > 1 or times[before.target] > 1:
            continue
        conv = model.get_submodule(before.target)
        if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
            model.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            behind = nn.Sequential(*norm.children())  # timm's batch norms bring their activation
            model.set_submodule(node.target, behind.eval())
    return model
