"""Bytes that the planner says an optimizer step sends beside those that cross the wire between two ranks.

    unshare --net sh -c 'ip link set lo up && python scripts/benchmark/traffic_check.py'

Two processes on the CPU train a stack of linear layers under DeepSpeed, ZeRO 0 to 3, with one and with three backward
passes per step, whole and with frozen layers in between; ZeRO-3 lets go of every layer at once, as it does in large
models. Counted are the bytes of the loopback interface, headers included; in a network namespace of its own nothing
else is on it. Gloo reduces and scatters by an all-reduce: 2 T where others send T, which is planned for here. One
minute.
"""

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from pipeline.planner.sharding import Split, sent_by_reading, sent_by_training

RANKS, LAYERS, WIDTH, STEPS = 2, 4, 512, 3
ACCUMULATIONS = (1, 3)
RELEASING = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}


def engine(zero: int, accumulation: int, frozen: bool):
    """A stack of layers under DeepSpeed; with `frozen` every second one does not learn."""
    import deepspeed
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    for layer in list(model)[1::2] if frozen else ():
        layer.requires_grad_(False)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": {"stage": zero, **(RELEASING if zero == 3 else {})},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def loopback_bytes() -> int:
    """Bytes that the loopback interface has sent."""
    line = next(x for x in Path("/proc/self/net/dev").read_text().splitlines() if x.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def counted(zero: int, accumulation: int, frozen: bool) -> float:
    """Bytes that a rank sends per optimizer step, after a first step that makes what stays."""
    import torch
    from torch import distributed

    trained = engine(zero, accumulation, frozen)
    before = 0
    for step in range(STEPS + 1):
        if step == 1:
            distributed.barrier()
            before = loopback_bytes()
            distributed.barrier()
        for _ in range(accumulation):
            trained.backward(trained(torch.ones(1, WIDTH)).square().mean())
            trained.step()
    distributed.barrier()
    return (loopback_bytes() - before) / STEPS / RANKS


def planned(zero: int, accumulation: int, frozen: bool) -> float:
    """What the planner says of the same step."""
    half, split = LAYERS // 2 * WIDTH * WIDTH, Split(RANKS, zero)
    trained = half if frozen else 2 * half
    sent = sent_by_training(trained, 4 * half if frozen else 0.0, split, accumulation)
    return sent + (accumulation * sent_by_reading(4 * trained, split, 1) if zero == 3 else 0.0)  # Gloo's second T


def rank() -> None:
    """Body of each process; the first prints."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, and is not used
    deepspeed.init_distributed("gloo", verbose=False)
    first = os.environ["RANK"] == "0"
    if first:
        print("| learns | ZeRO | backward passes | counted, MB | planned, MB | planned / counted |")
        print("|---|---|---|---|---|---|")
    for frozen, zero, accumulation in product((False, True), range(4), ACCUMULATIONS):
        found, plan = counted(zero, accumulation, frozen), planned(zero, accumulation, frozen)
        if first:
            learns = "half" if frozen else "all"
            sizes = f"{found / 1e6:.2f} | {plan / 1e6:.2f} | {plan / found:.2f}"
            print(f"| {learns} | {zero} | {accumulation} | {sizes} |", flush=True)


def start() -> Iterator[subprocess.Popen]:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    for number in range(RANKS):
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
        told = {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        fixed = {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        yield subprocess.Popen([sys.executable, __file__, "--rank"], env=os.environ | fixed | told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().rank:
        rank()
        return
    sys.exit(max(process.wait() for process in list(start())))


if __name__ == "__main__":
    main()
