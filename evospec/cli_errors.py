"""What a user sees when something is wrong: one line on stderr, exit code 2."""

from __future__ import annotations

import sys
from typing import Any

from typer import Abort, TyperException
from typer.core import TyperGroup

from evospec.errors import EvoSpecError

BAD_INPUT = 2
ABORTED = 130


class OneLineErrors(TyperGroup):
    """The root command: turns usage errors and EvoSpecErrors into a line and exit code 2.

    Anything else is a bug and keeps its traceback. Use as `Typer(cls=OneLineErrors)`.
    """

    def main(self, *args: Any, **settings: Any) -> Any:
        settings["standalone_mode"] = False
        try:
            code = super().main(*args, **settings)
        except (EvoSpecError, TyperException) as error:
            sys.exit(_explain(error))
        except Abort:
            sys.exit(ABORTED)
        sys.exit(code or 0)


def _explain(error: EvoSpecError | TyperException) -> int:
    message = " ".join((str(error) if isinstance(error, EvoSpecError) else error.format_message()).split())
    if message:  # a command that was given nothing has printed its help, and no more is to be said
        print(f"error: {message}", file=sys.stderr)
    return BAD_INPUT
