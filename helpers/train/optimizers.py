"""Optimizers and learning-rate schedules by name, all of them PyTorch's own."""

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
        return torch.optim.RMSprop(parameters, momentum=config.momentum, foreach=True, **shared)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return optimizer(parameters, fused=True, **shared)


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
            optimizer, mode="max", factor=config.gamma, patience=config.plateau_patience
        )
    return None
