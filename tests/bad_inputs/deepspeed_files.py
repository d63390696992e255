"""Row 26: a DeepSpeed JSON that says what DeepSpeed would ignore, or what the config says otherwise."""

from pathlib import Path

from tests.bad_inputs.place import Case

_FILE = ("deepspeed.file=ds.json",)


def _case(name: str, said: str, text: str) -> Case:
    return Case(26, name, said, lambda: _write(text), _FILE)


def _write(text: str) -> None:
    Path("ds.json").write_text(text)


CASES = [
    _case(
        "DeepSpeed JSON with a typo",
        "[DS01] ds.json:2: unknown key 'zero_optimisation'; fix: did you mean 'zero_optimization'?",
        '{\n  "zero_optimisation": {"stage": 2}\n}\n',
    ),
    _case(
        "DeepSpeed JSON with a typo inside a section, indented by tabs",
        "[DS01] ds.json:4: unknown key 'zero_optimization.reduce_bucketsize'; "
        "fix: did you mean 'zero_optimization.reduce_bucket_size'?",
        '{\n\t"zero_optimization": {\n\t\t"stage": 2,\n\t\t"reduce_bucketsize": 5e8\n\t}\n}\n',
    ),
    _case(
        "DeepSpeed JSON with a stage that does not exist",
        "[DS01] ds.json:1: 'zero_optimization.stage' is 4, expected 0 or 1 or 2 or 3; "
        "fix: change 'zero_optimization.stage'",
        '{"zero_optimization": {"stage": 4}}',
    ),
    _case(
        "DeepSpeed JSON with another precision than the config",
        "[DS02] ds.json:2: 'bf16' is not for this file: the arithmetic is `model.compute`, and trained weights stay "
        "float32; fix: remove 'bf16'",
        '{"zero_optimization": {"stage": 2},\n "bf16": {"enabled": true}}',
    ),
    _case(
        "DeepSpeed JSON with a batch size",
        "[DS02] ds.json:1: 'train_batch_size' is not for this file: the batch sizes are `batch_size` and "
        "`microbatch_size` of each stage, and the number of ranks; fix: remove 'train_batch_size'",
        '{"train_batch_size": 64, "zero_optimization": {"stage": 2}}',
    ),
    _case(
        "DeepSpeed JSON that is none",
        "[DS01] ds.json:2: not JSON (…",
        '{\n  "zero_optimization": {stage: 2}\n}\n',
    ),
    Case(
        26,
        "DeepSpeed JSON that is not there",
        "[PATH01] deepspeed.file: no file or folder 'nothing-of-the-kind.json'; fix: correct the path, or create it",
        overrides=("deepspeed.file=nothing-of-the-kind.json",),
    ),
]
