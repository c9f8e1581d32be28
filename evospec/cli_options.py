"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]

TargetOption = Annotated[
    str, typer.Option(help="Model to decode: built-in name (see `models`), folder, GGUF file or Hub id.")
]
DrafterOption = Annotated[
    str,
    typer.Option(
        help="Drafter: a folder (published EAGLE-3 and speculators checkpoints too), a Hub id, a shipped "
        "name, or `default` for the one made for the target."
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to decode.")]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Number format; `auto` is bfloat16 where the processor computes in it.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves PyTorch's default.")]
ChatOption = Annotated[
    bool, typer.Option("--no-chat", help="Continue the text as it is, without the model's chat template.")
]
