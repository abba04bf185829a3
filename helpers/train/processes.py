"""One training on several processes: who writes, who works on which images, sums over all.

`launch` starts them on this machine; for several machines use `torchrun ... -m helpers.train`.
Where there is a single process, its part is everything and nothing waits.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn

from helpers import ROOT
from helpers.models.device import choose_device
from helpers.runs.config import Config, ConfigError
from helpers.runs.folder import Run, open_run
from helpers.runs.progress import tqdm

# One process may decode a data set while the others wait; one that dies ends them all.
PATIENCE = timedelta(days=1)


def world_size() -> int:
    """Return the number of processes of this training."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Say whether this process is the one that writes files and shows progress."""
    return rank() == 0


def join() -> None:
    """Join the processes that torchrun started, each with a GPU of its own where there are any."""
    if "WORLD_SIZE" not in os.environ or distributed.is_initialized():
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = choose_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)


def _end_with_parent() -> None:
    """End this process soon after torchrun was killed, which would leave it behind."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def leave() -> None:
    """Leave them again."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def wait() -> None:
    """Wait until every process is here."""
    if distributed.is_initialized():
        distributed.barrier()


def share(indices: np.ndarray) -> np.ndarray:
    """Return this process's part of some indices; the parts differ by one in length at most."""
    return np.array_split(indices, world_size())[rank()]


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes."""
    if not distributed.is_initialized():
        return tensor
    on_gpu = distributed.get_backend() == "nccl"
    total = tensor.cuda() if on_gpu else tensor.clone()
    distributed.all_reduce(total)
    return total.to(tensor.device)


def join_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, one after another, as `share` had cut them."""
    if not distributed.is_initialized():
        return rows
    parts: list = [None] * world_size()
    distributed.all_gather_object(parts, rows.numpy())
    return torch.from_numpy(np.concatenate(parts))


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a model so that its gradients are the mean over all processes.

    Batch norm sees the whole batch on GPUs, and in the five blocks on a CPU, too; other networks'
    batch norms on a CPU see each process's part.
    """
    if not distributed.is_initialized():
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model)


def launch(config: Config, processes: int) -> None:
    """Train a configuration with several processes on this machine, one for each GPU.

    Its run is then finished, so that `fit` loads it. Raises ConfigError where there are more
    processes than images in a batch, or than GPUs if there are any, and RuntimeError when the
    training fails.
    """
    if processes > config.batch_size:
        raise ConfigError(f"processes={processes} cannot share a batch of {config.batch_size} "
                          "images: use fewer, or a larger batch_size")  # fmt: skip
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ConfigError(f"processes={processes} would need as many GPUs: use {gpus} here")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config.model_dump()), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "helpers.train", str(path), os.getcwd()]
        run = open_run(config)
        started = subprocess.Popen(command, cwd=ROOT)
        try:
            _watch(started, run)
        finally:
            started.terminate()
            status = started.wait()
    if status:
        raise RuntimeError(
            f"training with {processes} processes stopped with exit status {status}: see its "
            f"messages above, or train with processes=1"
        )


def _watch(process: subprocess.Popen, run: Run) -> None:
    """Show the epochs that the run's folder holds, until the process ends."""
    epochs = run.config.all_epochs
    with tqdm(total=epochs, unit="epoch", desc=run.name, leave=False, disable=None) as bar:
        while process.poll() is None:
            rows = run.history
            if len(rows) > bar.n:
                bar.set_postfix_str(f"loss {rows[-1]['train_loss']:.3f}")
                bar.update(len(rows) - bar.n)
            time.sleep(0.2)
