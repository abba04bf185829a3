"""Optimizers and learning-rate schedules by name, all of them PyTorch's own."""

import torch
from torch import nn

from helpers.config import Config


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Make `config.optimizer` for the parameters that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
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
        return schedulers.OneCycleLR(optimizer, config.lr, total_steps=total)
    if config.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=total)
    if config.schedule == "step":
        return schedulers.StepLR(optimizer, config.step_size, config.gamma)
    if config.schedule == "plateau":
        return schedulers.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.gamma, patience=config.plateau_patience
        )
    return None
