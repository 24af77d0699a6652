"""The command line of a script: flags from the signature of its `main`, one sentence for a mistake, exit codes."""

import argparse
import difflib
import inspect
import math
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from oid.files import InputError, Unfinished, require_file


def check_flag(is_fine: bool, name: str, value: object, allowed: str) -> None:
    """Raises an InputError that names a flag, its value and the allowed values, unless `is_fine`.

    >>> check_flag(0 <= iou <= 1, "iou", iou, "a number from 0 to 1")
    """
    if not is_fine:
        raise InputError(f"--{name} is {_shown(value)}: give {allowed}")


def check_range(low: float, high: float, **values: float | None) -> None:
    """Raises an InputError for the first flag whose value is not from `low` to `high`; NaN is in no range, None in all.

    >>> check_range(0, 1, iou=iou, group_of_weight=group_of_weight)
    """
    for name, value in values.items():
        limit = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        is_fine = value is None or (low <= value <= high and value < math.inf)
        check_flag(is_fine, name, value, f"a number {limit}")


def check_files(**paths: str | None) -> None:
    """Raises an InputError for the first flag that names a missing file; None and "none" name no file.

    >>> check_files(boxes=boxes, hierarchy=hierarchy)
    """
    for name, path in paths.items():
        if path not in (None, "none"):
            require_file(path, f"give another file by --{name}")


def run_script(main: Callable[..., None], arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Calls `main` with the values of the command line, then exits.

    The flags are the keywords of `main`, typed by their annotations: `str`, `int`, `float`, `bool`, `Literal[...]`,
    one of these `| None`, or `tuple[type, ...]` for a flag with one or more values. A `~` at the beginning of a text
    means the home folder, in default values too. Parameters without a default are values without a flag. The help texts
    are the lines of the `Args:` section of `main`'s docstring; the text before that section is the script's help.

    Exit codes: 0 after success; 2 after a user's mistake (`InputError`) or a refusal of the system (`OSError`); 75 when
    the same command must run again (`Unfinished`); 130 after Ctrl-C; 141 when the reader of the output closed the pipe.
    These end with one sentence. Any other exception is a bug and keeps its traceback. With the environment variable
    `OID_DEBUG=1` every error shows its traceback.

    Args:
        main: a function whose parameters with a default are keyword-only.
        arguments: the command line without the program's name; None = `sys.argv[1:]`.
    """
    code = 0
    try:
        try:
            parser = command_line(main)
            values = vars(parser.parse_args(arguments)).items()
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values}
            if values:
                _print_settings(values, parser)
            main(**values)
        finally:
            sys.stdout.flush()
    except (InputError, Unfinished, OSError, KeyboardInterrupt) as error:
        code = _report(error)
    sys.exit(code)


def _report(error: BaseException) -> int:
    """Prints why a script ends, and returns its exit code."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe or a full disk: Python must not try again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # for example `head` has read enough
        return 141
    if os.environ.get("OID_DEBUG") == "1":
        traceback.print_exception(error)
    code, message = 2, f"error: {error}"
    if isinstance(error, Unfinished):
        code, message = 75, str(error)  # EX_TEMPFAIL of sysexits.h
    elif isinstance(error, KeyboardInterrupt):
        code, message = 130, f"\n{error}" if str(error) else "\nstopped by the keyboard"
    elif isinstance(error, OSError) and error.strerror:  # no permission or no space left, in the system's words
        message = f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error.strerror}"
    print(message, file=sys.stderr)
    return code


def _print_settings(values: dict[str, object], parser: argparse.ArgumentParser) -> None:
    """Prints every setting, with a star before those that are not the default."""
    print(f"{Path(sys.argv[0]).name}, settings (* = not the default):")
    for name, value in values.items():
        shown = "" if value is None else _shown(value)
        print(f"  {' ' if value == parser.get_default(name) else '*'} {name} {shown}".rstrip())
    sys.stdout.flush()


def _shown(value: object) -> str:
    """Returns a value as it is typed on a command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, with the nearest flag instead of an unknown one."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {self._sentence(message)}\n")

    def _sentence(self, message: str) -> str:
        """Rewrites an error of argparse, which does not speak of flags and values."""
        kind, _, rest = message.partition(": ")
        if kind == "unrecognized arguments":
            word = rest.split()[0].split("=")[0]
            near = difflib.get_close_matches(word, re.findall(r"--\w+", self.format_usage()), n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
            return f"unknown flag {word}: {hint}" if word.startswith("-") else f"{word!r} belongs to no flag: {hint}"
        if kind == "the following arguments are required":
            return f"{rest.split(',')[0]} is missing: --help explains it"
        flag = kind.removeprefix("argument ")
        return f"{flag} needs a value: --help explains it" if rest.startswith("expected") else f"{flag} {rest}"


def command_line(main: Callable[..., None]) -> argparse.ArgumentParser:
    """Makes the parser whose flags are the keywords of `main`; see `run_script`."""
    text, help_of = _split_docstring(inspect.getdoc(main) or "")
    module_text = inspect.getdoc(sys.modules[main.__module__]) or ""
    parser = _Parser(
        description=f"{module_text}\n\n{text}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    annotations = typing.get_type_hints(main)
    for name, parameter in inspect.signature(main).parameters.items():
        default, is_flag = parameter.default, parameter.kind is parameter.KEYWORD_ONLY
        if is_flag == (default is parameter.empty):
            raise TypeError(f"{main.__module__}.main: {name} must be keyword-only and have a default, or neither")
        if isinstance(default, str):
            default = os.path.expanduser(default)
        options = _argument_options(annotations[name])
        options |= {"default": default} if is_flag else {"metavar": name.upper()}
        shown = f" (default: {_shown(default)})" if is_flag and default is not None else ""
        parser.add_argument(
            f"--{name}" if is_flag else name, help=f"{help_of[name]}{shown}".replace("%", "%%"), **options
        )
    return parser


def _argument_options(annotation: object) -> dict[str, object]:
    """Returns the keywords of `add_argument` for one annotation."""
    kind, choices = typing.get_origin(annotation), typing.get_args(annotation)
    if kind in (types.UnionType, typing.Union):  # the second: Literal[...] | None
        return _argument_options(next(choice for choice in choices if choice is not types.NoneType))
    if kind is tuple:
        return _argument_options(choices[0]) | {"nargs": "+"}
    if kind is typing.Literal:
        names = {str(choice): choice for choice in choices}
        read = _reader(names.__getitem__, f"is none of its values: choose from {', '.join(names)}")
        return {"type": read, "metavar": f"{{{','.join(names)}}}"}
    if annotation is bool:
        return {"type": _READERS[bool], "metavar": "true|false", "nargs": "?", "const": True}
    return {"type": _READERS[annotation], "metavar": annotation.__name__.upper()}


def _reader(convert: Callable[[str], object], mistake: str) -> Callable[[str], object]:
    """Returns `convert` with an error for argparse that says what is wrong with a text."""

    def read(text: str) -> object:
        try:
            return convert(text)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"{text!r} {mistake}") from None

    return read


_READERS = {
    str: os.path.expanduser,
    int: _reader(int, "is not a whole number"),
    float: _reader(float, "is not a number"),
    bool: _reader(lambda text: {"true": True, "false": False}[text.lower()], "is neither true nor false"),
}


def _split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Splits a docstring into the text before `Args:` and the help of each argument by its name."""
    text, _, section = docstring.partition("Args:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return text.strip(), {name: " ".join(entry.split()) for name, entry in entries}
