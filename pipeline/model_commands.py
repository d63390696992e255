"""`rlhf export` and `rlhf chat`: what to do with a finished model. Imports torch only once there is something to do."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.config import STAGES
from pipeline.model_files import require_safe_folders
from pipeline.policies import final_of, named_adapters

TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the model.")]


def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR|FINAL", help="A run, or the final/ folder of a stage.")],
    merge: Annotated[Path, typer.Option("--merge", metavar="OUT", help="New folder for the merged weights.")],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="|".join(STAGES), help="Default: the last finished of sft and ppo.")
    ] = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Storage type; merged in float32.")] = "float32",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Merge a stage's adapter into its base and write a folder that transformers opens without PEFT."""
    final = final_of(folder, stage)
    require_safe_folders([final], trust_remote_code)

    from stages.export import export_merged

    export_merged(final, merge, dtype, trust_remote_code)


def chat(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, a final/ folder, or a base model.")],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="NAME=PATH", help="Another adapter; may be repeated.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the full softmax; 0 = the likeliest token.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of a reply, tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the random draws.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a policy, switching live between adapters of any method on one base; /help lists the commands."""
    final, adapters = final_of(folder), named_adapters(adapter or ())
    require_safe_folders([final, *adapters.values()], trust_remote_code)

    from stages.chat import ChatConfig, ChatSession, run_chat

    session = ChatSession(ChatConfig(final, adapters, temperature, max_new_tokens, seed, trust_remote_code))
    sys.stdin.reconfigure(errors="replace")
    run_chat(session, sys.stdin, partial(print, end="", flush=True), marked=sys.stdin.isatty())
