"""`python -m evospec`: the library's commands, without the server's."""

from evospec.cli import app

app(prog_name="python -m evospec")
