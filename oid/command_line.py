"""The command line of a script: flags from the signature of its `main`, one sentence for a mistake, exit codes."""

import argparse
import difflib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from oid.files import InputError


def check_flag(is_fine: bool, name: str, value: object, allowed: str) -> None:
    """Raises an InputError that names a flag, its value and what it may be, unless `is_fine`.

    >>> check_flag(0 <= iou <= 1, "iou", iou, "a number from 0 to 1")
    """
    if not is_fine:
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise InputError(f"--{name} is {shown}: give {allowed}")


def run_script(main: Callable[..., None], arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Calls `main` with its defaults and the flags of the command line, then exits: 0 done, 2 the user's mistake.

    The flags are the keywords of `main`, typed by their annotations: `str`, `int`, `float`, `bool`, `Literal[...]`,
    one of these `| None`, or `tuple[type, ...]` for a flag that takes several values. An argument in front of the
    keywords is a value without a flag. Their help texts are the lines of the `Args:` section of `main`'s docstring;
    what comes before that section is the script's help.

    Args:
        main: a function with keyword-only arguments that all have defaults, after any that are not and have none.
        arguments: the command line without the program's name; None = `sys.argv[1:]`.
    """
    try:
        try:
            sys.exit(_exit_code(main, arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it closes stdout
        sys.exit(141)  # what a shell says of a program that a closed pipe has ended


def _exit_code(main: Callable[..., None], arguments: Sequence[str] | None) -> int:
    """Calls `main` as `run_script` says, and prints the sentence of a mistake."""
    parser = command_line(main)
    values = vars(parser.parse_args(arguments))
    if values:
        print_settings(values, parser)
    try:
        main(**values)
    except InputError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # no permission, no space left: the sentence is the system's, with the file's name
        sys.stdout.flush()
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped by the keyboard; run the same command to go on", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, naming the nearest flag for an unknown one."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {self._sentence(message)}\n")

    def _sentence(self, message: str) -> str:
        """Says what argparse means: it speaks of arguments, where we speak of flags and values."""
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            known = [option for action in self._actions for option in action.option_strings]
            word = unknown[1].split("=")[0]
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
            return f"unknown flag {word}: {hint}" if word.startswith("-") else f"{word!r} belongs to no flag: {hint}"
        if missing := re.match(r"the following arguments are required: (\w+)", message):
            return f"{missing[1]} is missing: --help explains it"
        if of_flag := re.match(r"argument (\S+): (.*)", message, flags=re.DOTALL):
            flag, what = of_flag.groups()
            if what.startswith("expected"):
                return f"{flag} needs a value: --help explains it"
            if choice := re.match(r"invalid choice: (.*) \(choose from (.*)\)", what):
                return f"{flag} {choice[1]} is none of its values: choose from {choice[2]}"
            return f"{flag} {what}"
        return message


def command_line(main: Callable[..., None]) -> argparse.ArgumentParser:
    """Makes the parser whose flags are the keywords of `main`; see `run_script`."""
    text, help_of = _split_docstring(inspect.getdoc(main) or "")
    module_text = inspect.getdoc(sys.modules[main.__module__]) or ""
    parser = _Parser(
        description="\n\n".join(part for part in (module_text, text) if part),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    annotations = typing.get_type_hints(main)
    for name, parameter in inspect.signature(main).parameters.items():
        default = parameter.default
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and default is parameter.empty
        if not positional and (parameter.kind is not parameter.KEYWORD_ONLY or default is parameter.empty):
            raise TypeError(f"{main.__module__}.main: {name} must be keyword-only and have a default")
        help_text, kind = help_of[name].replace("%", "%%"), _argument_type(annotations[name])
        if positional:
            parser.add_argument(name, help=help_text, **kind | {"metavar": name.upper()})
            continue
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        if default is not None:
            help_text += f" (default: {shown})".replace("%", "%%")
        parser.add_argument(f"--{name}", default=default, help=help_text, **kind)
    return parser


def print_settings(values: dict[str, object], parser: argparse.ArgumentParser) -> None:
    """Prints every setting, those that differ from the default marked with a star."""
    print(f"{Path(sys.argv[0]).name}, settings (* = not the default):")
    for name, value in values.items():
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else value
        print(f"  {' ' if value == parser.get_default(name) else '*'} {name} {shown}".rstrip())
    sys.stdout.flush()


def _argument_type(annotation: object) -> dict[str, object]:
    """The keywords of `add_argument` for one annotation."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):  # the second: Literal[...] | None
        (annotation,) = (choice for choice in typing.get_args(annotation) if choice is not type(None))
    if typing.get_origin(annotation) is tuple:
        item = _argument_type(typing.get_args(annotation)[0])
        return {**item, "nargs": "+", "action": _StoreTuple}
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        return {"choices": choices, "type": type(choices[0])}
    if annotation is bool:
        return {"type": _true_or_false, "nargs": "?", "const": True, "metavar": "true|false"}
    return {"type": _NUMBERS.get(annotation, annotation), "metavar": annotation.__name__.upper()}


class _StoreTuple(argparse.Action):
    """Several values arrive as a list; `main`'s defaults are tuples, because a mutable default is a trap."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


_NUMBERS = {int: _whole_number, float: _number}


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Takes a docstring apart: the text before `Args:`, and {argument: its help}."""
    text, _, section = docstring.partition("Args:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return text.strip(), {name: " ".join(entry.split()) for name, entry in entries}
