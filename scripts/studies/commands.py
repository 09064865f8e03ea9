"""Commands that are imported only when they are chosen: the others cost neither time nor memory."""

import argparse
import functools
import importlib
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tyro

from studies import results


class Command(NamedTuple):
    """A function whose parameters are the options of a command.

    Attributes:
        module: where the function is; its docstring is the description of the command. Its ``ABOUT``, if it has one,
            gives the words of the results files by their names: COMMAND, or COMMAND-NAME if the function has a
            parameter ``name``.
        help: one line about the command.
        function: name of the function.
    """

    module: str
    help: str
    function: str = "main"


class Call(NamedTuple):
    """A command with its options.

    Attributes:
        run: runs the command.
        seeds: the seeds among the options.
        name: name of the results file, without its ending.
        about: the words of the results file; None if the command is not to write it.
    """

    run: Callable[[], object]
    seeds: str
    name: str
    about: results.About | None


def run_command(
    commands: Mapping[str, Command], description: str | None, arguments: Sequence[str], script: Path
) -> None:
    """Runs the command that the first argument names with the options that follow.

    With the option ``--write`` the tables are written to a results file beside the script too.

    Args:
        commands: the commands by name.
        description: their common purpose, for the list of commands.
        arguments: of the command line.
        script: the script that has the commands.

    Raises:
        SystemExit: after ``--help``, and with status 2 for commands and options that do not exist.
        ValueError: if the command is to write a results file and has none.
    """
    call = read_command(commands, description, arguments)
    if call.about is None:
        call.run()
    else:
        command = shlex.join(["python", f"scripts/{script.parent.name}/{script.name}", *arguments])
        results.write(script.with_name(f"{call.name}.md"), call.about, command, call.seeds, call.run)


def read_command(commands: Mapping[str, Command], description: str | None, arguments: Sequence[str]) -> Call:
    """Reads a command line as `run_command` does, and runs nothing."""
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
    function = getattr(module, command.function)

    @functools.wraps(function)
    def bind(*args: object, **kwargs: object) -> inspect.BoundArguments:
        return inspect.signature(function).bind(*args, **kwargs)

    bound = tyro.cli(
        bind,
        prog=f"{parser.prog} {chosen.command}",
        args=[option for option in chosen.options if option != "--write"],
        description=f"{module.__doc__}\n\nWith --write the tables are written to a results file too.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    options = bound.arguments
    seeds = [" ".join(map(str, value.seeds)) for value in options.values() if hasattr(value, "seeds")]
    name = "-".join([chosen.command, options["name"]] if "name" in options else [chosen.command])
    about = None
    if "--write" in chosen.options:
        known = getattr(module, "ABOUT", {})
        if name not in known:
            raise ValueError(f"--write: {name!r} has no results file; leave --write out. Those that have: {[*known]}.")
        about = known[name]
    return Call(
        lambda: function(*bound.args, **bound.kwargs), seeds[0] if seeds else "fixed in the script", name, about
    )
