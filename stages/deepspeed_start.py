"""Joins this process to its ranks through DeepSpeed, without what DeepSpeed does by itself at this point."""

import os
import socket
from datetime import timedelta

import deepspeed
import deepspeed.ops
import torch
from torch.distributed import distributed_c10d

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def join_ranks(timeout_s: float) -> None:
    """Join the process group by NCCL, or by Gloo where there is no GPU; does nothing the second time.

    On a CPU DeepSpeed would first compile a shared-memory collective, for a minute, that only inference uses.
    """
    if "RANK" not in os.environ:
        os.environ |= _ALONE | {"MASTER_PORT": str(_free_port())}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, timeout=timedelta(seconds=timeout_s), verbose=False)
    limit_waiting(timeout_s)


def limit_waiting(timeout_s: float) -> None:
    """Give every process group this time-out: DeepSpeed makes its own with torch's half hour."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
