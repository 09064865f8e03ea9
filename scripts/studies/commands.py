"""Commands that are imported only when they are chosen: the others cost neither time nor memory."""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tyro


class Command(NamedTuple):
    """A function whose parameters are the options of a command.

    Attributes:
        module: where the function is; its docstring is the description of the command.
        help: one line about the command.
        function: name of the function.
    """

    module: str
    help: str
    function: str = "main"


def run_command(commands: Mapping[str, Command], description: str | None, arguments: Sequence[str]) -> None:
    """Runs the command that the first argument names with the options that follow.

    Args:
        commands: the commands by name.
        description: their common purpose, for the list of commands.
        arguments: of the command line.

    Raises:
        SystemExit: after ``--help``, and with status 2 for commands and options that do not exist.
    """
    width = max(map(len, commands))
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:{width}}  {command.help}" for name, command in commands.items()),
    )
    parser.add_argument("command", choices=commands, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the command; --help lists them")
    chosen = parser.parse_args(arguments)
    command = commands[chosen.command]
    module = importlib.import_module(command.module)
    tyro.cli(
        getattr(module, command.function),
        prog=f"{parser.prog} {chosen.command}",
        args=chosen.options,
        description=module.__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
