"""The tables of docs/scaling.md, from the planner's formulas: nothing in them is measured.

    python scripts/benchmark/scaling_table.py            # put them between their marks in docs/scaling.md

PPO of configs/hh_llama3_8b_lora.yaml on A100s of 80 GB, for policies with the sizes of Llama 3.2 1B, Llama 3.1 8B and
70B. For each number of GPUs the least that fits is taken: no offloading before offloading, a whole rollout before half
of one, a low ZeRO stage before a high one, rollouts with gathered weights before layer by layer; then the
largest microbatch.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pipeline.config import PipelineConfig
from pipeline.config_loading import load_config
from pipeline.planner.costs import DEVICES, MFU
from pipeline.planner.fitting import Setting, largest_microbatch
from pipeline.planner.memory import StageMemory, stage_memory
from pipeline.planner.sharding import Split
from pipeline.planner.table import gigabytes
from pipeline.planner.work import StageWork, stage_work

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "scaling.md"
DEVICE = DEVICES["a100"]
GPUS = (1, 2, 4, 8, 16, 32, 64)
LINKS = {"between hosts": 25e9, "within a host": 300e9}
"""Bytes per second that one GPU sends: 200 Gb/s per GPU, and NVLink of the A100."""
_WIDE = {"model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
POLICIES = {
    "1B": _WIDE
    | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64}
    | {"intermediate_size": 8192, "tie_word_embeddings": True},
    "8B": _WIDE | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "70B": _WIDE
    | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
}
_FULL = [f"{stage}.tuning={{method: full}}" for stage in ("sft", "reward_model", "ppo")]
METHODS = {
    "full": [*_FULL, "model.dtype=float32"],
    "LoRA": [],
}
ROLLOUTS = (512, 256, 128)
OFFLOADING = ({}, {"offload_optimizer": True}, {"offload_optimizer": True, "offload_parameters": True})


@dataclass(frozen=True)
class Found:
    """A way in which PPO fits, or the best of those that do not."""

    setting: Setting
    microbatch: int
    memory: StageMemory
    work: StageWork


def config_of(policy: str, method: str, folder: Path, *overrides: str) -> PipelineConfig:
    """The shipped recipe with a policy of these sizes; no weights are needed."""
    model = folder / policy
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(POLICIES[policy]))
    common = [f"model.path={model}", "ppo.gradient_checkpointing=true", f"ppo.rollout_batch_size={ROLLOUTS[0]}"]
    return load_config(ROOT / "configs" / "hh_llama3_8b_lora.yaml", [*common, *METHODS[method], *overrides])


def settings(config: PipelineConfig, gpus: int) -> Iterator[Setting]:
    """Ways to run it on so many GPUs, the plainest first."""
    for offloading in OFFLOADING:
        lowest = 3 if "offload_parameters" in offloading else 1 if offloading else 0
        for rollout in ROLLOUTS:
            for zero, gather in [*((zero, True) for zero in range(lowest, 4)), (3, False)]:
                setting = Setting(config, Split(gpus, zero, gather_for_rollouts=gather, **offloading))
                yield setting.with_section("ppo", rollout_batch_size=rollout)


def choose(config: PipelineConfig, gpus: int) -> Found:
    """The first way that fits, with its largest microbatch; else that of the lowest peak, with a microbatch of 0."""
    tried = []
    for setting in settings(config, gpus):
        size = largest_microbatch(setting, "ppo", DEVICE.memory)
        tried.append(_found(setting, size))
        if size:
            return tried[-1]
    return min(tried, key=lambda found: found.memory.peak)


def _found(setting: Setting, size: int) -> Found:
    used, cast = setting.with_section("ppo", microbatch_size=max(size, 1)), setting.cast("ppo")
    memory = stage_memory(used.config, "ppo", cast, used.split)
    return Found(used, size, memory, stage_work(used.config, "ppo", cast, used.split, DEVICE))


# The tables


def placement_table(folder: Path) -> str:
    """How PPO of each policy fits on each number of GPUs."""
    lines = [
        "| policy | tuning | GPUs | policy, value model | reference, reward model | rollout | largest microbatch "
        "| peak, GB | host, GB | sent, GB | seconds | decoding |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for policy, method in product(POLICIES, METHODS):
        config = config_of(policy, method, folder)
        lines += [f"| {policy} | {method} | {gpus} | {_cells(choose(config, gpus))} |" for gpus in GPUS]
    return "\n".join(lines)


def _cells(found: Found) -> str:
    memory, split, work = found.memory, found.setting.split, found.work
    if not found.microbatch:
        worst = max(memory.worst.parts, key=memory.worst.parts.get)
        kept = memory.peak - memory.worst.bytes
        largest = (
            f"{worst} {gigabytes(memory.worst.parts[worst])}" if memory.worst.parts[worst] > kept else "what stays"
        )
        why = f"does not fit: {gigabytes(memory.peak)}, of which {largest}"
        return " | ".join([f"{split.name}", why, *["-"] * 7])
    lora = found.setting.config.ppo.tuning.method != "full"
    frozen = "ZeRO-3" if split.zero == 3 else "one base for all roles" if lora else "whole"
    rollout = str(found.setting.config.ppo.rollout_batch_size)
    sizes = map(gigabytes, (memory.peak, memory.host, work.sent))
    share = f"{work.seconds['decoding'] / work.total:.0%}"
    return " | ".join([split.name, frozen, rollout, str(found.microbatch), *sizes, f"{work.total:.3g}", share])


def sending_table(folder: Path) -> str:
    """What one PPO step of the 8B policy sends per GPU, by phase, on 16 GPUs with microbatches of 8."""
    lines = [
        "| tuning | ZeRO | rollout | scoring | training | sum, GB | seconds at 25 GB/s | seconds of computing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in ("full", "LoRA"):
        config = config_of("8B", method, folder, "ppo.microbatch_size=8")
        for name, split in _splits():
            setting = Setting(config, split)
            work = stage_work(config, "ppo", setting.cast("ppo"), setting.split, DEVICE)
            phases = map(gigabytes, (*work.sent_by.values(), work.sent))
            seconds = f"{work.sent / LINKS['between hosts']:.3g} | {work.total:.3g}"
            lines.append(f"| {method} | {name} | {' | '.join(phases)} | {seconds} |")
    return "\n".join(lines)


def _splits() -> Iterator[tuple[str, Split]]:
    yield from ((str(zero), Split(16, zero)) for zero in range(4))
    yield "3, rollouts layer by layer", Split(16, 3, gather_for_rollouts=False)


def gathering_table() -> str:
    """Tokens that a microbatch needs so that gathering weights for its forward pass takes no longer than the pass."""
    lines = ["| weights | " + " | ".join(f"{name}, {link / 1e9:.0f} GB/s" for name, link in LINKS.items()) + " |"]
    lines.append("|---|---|---|")
    for name, size in {"float32, full fine-tuning": 4, "bfloat16, frozen base": 2}.items():
        tokens = [size * MFU * DEVICE.bfloat16 / (2 * link) for link in LINKS.values()]
        lines.append(f"| {name} | " + " | ".join(f"{count:,.0f}" for count in tokens) + " |")
    return "\n".join(lines)


def decoding_table(folder: Path) -> str:
    """What part of PPO's seconds decoding takes, by length and completions per GPU; and a token's weights streamed."""
    lines = [
        "| policy (LoRA) | completions per GPU | 256 new tokens | 1,024 | 4,096 | a token's weights read "
        "| and streamed between hosts under ZeRO-3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for policy in POLICIES:
        for rows in (128, 16):
            lines.append(_decoding_row(policy, rows, folder))
    return "\n".join(lines)


def _decoding_row(policy: str, rows: int, folder: Path) -> str:
    gpus = ROLLOUTS[0] // rows
    shares = []
    for tokens in (256, 1024, 4096):
        config = config_of(policy, "LoRA", folder, f"ppo.max_new_tokens={tokens}")
        setting = Setting(config, Split(gpus, 0))
        work = stage_work(config, "ppo", setting.cast("ppo"), setting.split, DEVICE)
        shares.append(f"{work.seconds['decoding'] / work.total:.0%}")
    weights = Setting(config, Split(gpus, 3)).cast("ppo").learners[0].read
    read, streamed = DEVICE.reading(weights), weights / LINKS["between hosts"]
    return f"| {policy} | {rows} | {' | '.join(shares)} | {read * 1e3:,.0f} ms | {streamed * 1e3:,.0f} ms |"


def tables() -> Mapping[str, str]:
    """Each table by the name of its mark."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "placement": placement_table(Path(folder)),
            "sending": sending_table(Path(folder)),
            "gathering": gathering_table(),
            "decoding": decoding_table(Path(folder)),
        }


def updated(document: str) -> str:
    """The document with its tables made anew."""
    for name, table in tables().items():
        start, end = f"<!-- computed: scripts/benchmark/scaling_table.py {name} -->", f"<!-- end of {name} -->"
        before, found, rest = document.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{DOCUMENT} has no place for the table '{name}'")
        document = f"{before}{start}\n{table}\n{end}{after}"
    return document


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
