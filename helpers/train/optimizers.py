"""Optimizers and learning-rate schedules by name: PyTorch's own, RMSprop with one step changed."""

from collections.abc import Callable

import torch
from torch import nn

from helpers.models.freezing import parts
from helpers.runs.config import Config


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Make `config.optimizer` for the parameters that are trained.

    With `layer_decay` d, the head's learning rate is lr, the last stage's lr * d, the one's
    before lr * d^2, and so on; the first group is the last part of the network that is trained.
    """
    parameters: list = [p for p in model.parameters() if p.requires_grad]
    if config.layer_decay < 1:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = [[named[n] for n in part if n in named] for part in reversed(parts(model))]
        parameters = [
            {"params": group, "lr": config.lr * config.layer_decay**depth}
            for depth, group in enumerate(groups)
            if group
        ]
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, momentum=config.momentum, nesterov=config.nesterov, fused=True, **shared
        )
    if config.optimizer == "rmsprop":
        return RMSprop(parameters, momentum=config.momentum, foreach=True, **shared)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return optimizer(parameters, fused=True, **shared)


class RMSprop(torch.optim.RMSprop):
    """PyTorch's, which with float16 leaves out a step of infinite gradients without waiting.

    PyTorch's own has no fused form, so that GradScaler asks the GPU at every step whether there was
    an infinite gradient. An optimizer that says that it can is given the answer on the GPU instead.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> torch.Tensor | None:
        """Make a step, or change nothing where `found_inf`, from GradScaler, says so."""
        if (found := getattr(self, "found_inf", None)) is None:
            return super().step(closure)
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in trained:
            p.grad.div_(self.grad_scale)
        before = [{name: value.clone() for name, value in self._tensors(p)} for p in trained]
        loss = super().step(closure)
        infinite = found.bool()
        for p, kept in zip(trained, before, strict=True):
            for name, value in self._tensors(p):
                if name in kept:
                    torch.where(infinite, kept[name], value, out=value)
                else:  # a running average that this first step has begun
                    value.masked_fill_(infinite, 0)
        return loss

    def _tensors(self, p: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """List what a step changes of a parameter: itself and its running averages."""
        return [("value", p), *((n, v) for n, v in self.state[p].items() if v.ndim)]


def make_scheduler(optimizer: torch.optim.Optimizer, config: Config, steps: int):
    """Make the learning-rate schedule: one-cycle and cosine step each batch, others each epoch."""
    schedulers = torch.optim.lr_scheduler
    total = config.epochs * steps
    if config.schedule == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return schedulers.OneCycleLR(optimizer, rates, total_steps=total)
    if config.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=total)
    if config.schedule == "step":
        return schedulers.StepLR(optimizer, config.step_size, config.gamma)
    if config.schedule == "plateau":
        return schedulers.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.gamma, patience=config.plateau_patience,
            threshold=0.0,  # a share of the best, which for a loss, here below 0, would be worse
        )  # fmt: skip
    return None
