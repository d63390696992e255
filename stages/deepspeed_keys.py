"""The keys of DeepSpeed's JSON that a user may give, and those that the stages decide. Imports no torch."""

from collections.abc import Mapping
from typing import Any

BOOL, NUMBER, TEXT, ANY = "true or false", "a number", "text", "anything"
AUTO = "auto"
"""transformers' word for `decide it yourself`; here it is as if the key was not there."""

_OFFLOAD = {"device": ("none", "cpu"), "pin_memory": BOOL, "buffer_count": NUMBER}
_ZERO = {
    "stage": (0, 1, 2, 3),
    "offload_optimizer": _OFFLOAD | {"ratio": NUMBER},
    "offload_param": _OFFLOAD | {"buffer_size": NUMBER, "max_in_cpu": NUMBER},
    **dict.fromkeys(("contiguous_gradients", "reduce_scatter", "allgather_partitions", "overlap_comm"), BOOL),
    **dict.fromkeys(("use_multi_rank_bucket_allreduce", "round_robin_gradients", "ignore_unused_parameters"), BOOL),
    **dict.fromkeys(("memory_efficient_linear", "override_module_apply", "enable_sanity_checks"), BOOL),
    **dict.fromkeys(("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"), BOOL),
    **dict.fromkeys(("stage3_gather_16bit_weights_on_model_save", "log_trace_cache_warnings"), BOOL),
    **dict.fromkeys(("reduce_bucket_size", "allgather_bucket_size", "sub_group_size"), NUMBER),
    **dict.fromkeys(("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"), NUMBER),
    **dict.fromkeys(("stage3_model_persistence_threshold", "stage3_max_live_parameters"), NUMBER),
    **dict.fromkeys(("stage3_max_reuse_distance", "stage3_module_granularity_threshold"), NUMBER),
    "zero_hpz_partition_size": NUMBER,
}
KNOWN: Mapping[str, Any] = {
    "zero_optimization": _ZERO,
    "communication_data_type": ("fp32", "fp16", "bf16"),
    "prescale_gradients": BOOL,
    "gradient_predivide_factor": NUMBER,
    "steps_per_print": NUMBER,
    "wall_clock_breakdown": BOOL,
    "memory_breakdown": BOOL,
    "dump_state": BOOL,
    "disable_allgather": BOOL,
    "comms_logger": dict.fromkeys(("enabled", "verbose", "prof_all", "debug"), BOOL) | {"prof_ops": ANY},
    "activation_checkpointing": ANY,
    "aio": ANY,
    "flops_profiler": ANY,
    "tensorboard": ANY,
    "csv_monitor": ANY,
    "zero_allow_untested_optimizer": BOOL,
    "zero_force_ds_cpu_optimizer": BOOL,
}
"""What may be in a file: nested keys, a kind of value, or a tuple of values."""

_BATCHES = "the batch sizes are `batch_size` and `microbatch_size` of each stage, and the number of ranks"
_PRECISION = "the arithmetic is `model.compute`, and trained weights stay float32"
OWNED: Mapping[str, str] = {
    **dict.fromkeys(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
        _BATCHES,
    ),
    "gradient_clipping": "it is `max_grad_norm` of each stage",
    "optimizer": "the stages bring AdamW of torch, which resumes bit for bit",
    "scheduler": "it is `lr_schedule` and `warmup_steps` of each stage",
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "amp", "torch_autocast", "data_types"), _PRECISION),
    "wandb": "it is the section `tracking`",
    "checkpoint": "checkpoints are written by the stages, for any number of ranks",
    **dict.fromkeys(
        (
            *("pipeline", "tensor_parallel", "sequence_parallel_size", "elasticity", "autotuning", "hybrid_engine"),
            *("data_efficiency", "curriculum_learning", "compression_training", "progressive_layer_drop", "zenflow"),
            *("expert_parallel", "weight_quantization", "gradient_allreduce_op", "managed_gradient_accumulation"),
            *("dataloader_drop_last", "sparse_gradients", "sparse_attention", "compile"),
        ),
        "the stages do not work with it",
    ),
}
"""What DeepSpeed knows and a file may not set, with who decides it."""

MUST_BE: Mapping[str, bool] = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
"""Switches that AdamW of torch needs."""


def switched_off(value: Any) -> bool:
    """Whether a section says that it does nothing, so that it contradicts nobody."""
    return value == AUTO or value is None or (isinstance(value, Mapping) and value.get("enabled") in (False, AUTO))
