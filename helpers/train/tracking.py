"""Tracking of a run by wandb, when it is asked for; nothing here ever asks for a key."""

from collections.abc import Callable

from helpers.config import Config, ConfigError
from helpers.runs import Run


def require_key() -> None:
    """Raise ConfigError where wandb finds no key; nothing is asked for."""
    import wandb  # noqa: PLC0415  (slow to import, and most runs do not track)

    if not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            "tracking 'online' finds no wandb key: run 'wandb login' in a terminal once, "
            "or use tracking 'offline'"
        )


def start_tracking(run: Run, config: Config) -> tuple[Callable[[dict], None], Callable[[], None]]:
    """Start `config.tracking` and return two functions: log an epoch's row, and stop.

    "offline" writes into the run's folder, for `wandb sync` later; "online" needs a key that
    `wandb login` stored before, else ConfigError. The key is in no file of this project.
    """
    if config.tracking == "none":
        return lambda row: None, lambda: None
    import wandb  # noqa: PLC0415  (slow to import, and most runs do not track)

    if config.tracking == "online":
        require_key()
    if wandb.run is not None:  # begun by a sweep's agent; a second init in a notebook would end it
        return lambda row: wandb.run.log(row, step=int(row["epoch"])), lambda: None
    tracked = wandb.init(
        project="five-blocks",
        name=run.name,
        id=f"{run.name}-{config.id}",
        resume="allow",
        mode=config.tracking,
        dir=run.folder,
        config=config.model_dump(),
        settings=wandb.Settings(silent=True, console="off"),
    )
    return lambda row: tracked.log(row, step=int(row["epoch"])), tracked.finish
