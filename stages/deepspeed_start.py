"""Joins this process to its ranks through DeepSpeed, without what DeepSpeed does by itself at this point."""

from datetime import timedelta

import torch
from torch import distributed


def prepare_deepspeed(timeout: timedelta) -> None:
    """Join the process group by NCCL, or by Gloo where there is no GPU.

    On a CPU DeepSpeed would first compile a shared-memory collective, for a minute, that only inference uses.
    """
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    limit_every_group(timeout)


def limit_every_group(timeout: timedelta) -> None:
    """Give every process group the same time-out: DeepSpeed makes its own with torch's half hour."""
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timeout, group)


def joined() -> bool:
    """Whether this process is connected to others."""
    return distributed.is_available() and distributed.is_initialized()
