"""Tracking of a run by wandb, when it is asked for; nothing here ever asks for a key."""

import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from helpers.runs.config import Config, ConfigError
from helpers.runs.folder import Run
from helpers.train import processes


def require_key() -> None:
    """Raise ConfigError where wandb finds no key; nothing is asked for."""
    import wandb  # noqa: PLC0415  (slow to import, and most runs do not track)

    if "prompt" in inspect.signature(wandb.login).parameters:
        found = wandb.login(prompt=False, verify=False)
    else:  # older versions, as Colab's, which would ask
        found = wandb.api.api_key
    if not found:
        raise ConfigError(
            "tracking 'online' finds no wandb key: run 'wandb login' in a terminal once, "
            "or use tracking 'offline'"
        )


@contextmanager
def tracked(run: Run, config: Config) -> Iterator[Callable[[dict], None]]:
    """Start `config.tracking`, give a function that logs an epoch's row, and close it at the end.

    "offline" writes into the run's folder, for `wandb sync` later; "online" needs a key that
    `wandb login` stored before, else ConfigError. The key is in no file of this project.
    """
    if config.tracking == "none" or not processes.is_first():
        yield lambda row: None
        return
    import wandb  # noqa: PLC0415  (slow to import, and most runs do not track)

    if config.tracking == "online":
        require_key()
    if wandb.run is not None:  # begun by a sweep's agent; a second init in a notebook would end it
        yield lambda row: wandb.run.log(row, step=int(row["epoch"]))
        return
    with wandb.init(
        project="five-blocks",
        name=run.name,
        id=f"{run.name}-{config.id}",
        resume="allow",
        mode=config.tracking,
        dir=str(run.folder),
        config=config.model_dump(),
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, x_disable_meta=True, symlink=False
        ),
    ) as begun:
        yield lambda row: begun.log(row, step=int(row["epoch"]))
    shutil.rmtree(begun.settings.log_dir, ignore_errors=True)  # its diary names folders
