"""Recipes: YAML files of fields of dataclasses, which the command line overrides."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from datasets_scripts.command_line import ArgumentParser, UsageError
from datasets_scripts.records import DataError

from .argument_checks import nearest


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """The text of a program as it is written, and the default of every field."""


class _RecipeParser(ArgumentParser, HfArgumentParser):
    """transformers' parser, failing in one line. As in a recipe, `null` is None for fields that may be, and a list may
    be `"[a, b]"` instead of `a b`."""

    def __init__(self, types: Sequence[type]):
        known = [(f.name, hints) for t in types for hints in [get_type_hints(t)] for f in fields(t) if f.init]
        self.hints = {name: hints[name] for name, hints in known}
        super().__init__(
            tuple(types),
            usage="%(prog)s [RECIPE.yaml] [--FIELD VALUE ...]",  # argparse would list a hundred fields first
            description=sys.modules["__main__"].__doc__,  # of the program that reads its fields here
            formatter_class=_HelpFormatter,
        )

    def _get_values(self, action, arg_strings):
        if arg_strings == ["null"]:
            if NoneType in get_args(self.hints.get(action.dest)):
                return None
            raise ArgumentError(action, "null: a value is needed")
        if action.nargs in ("+", "*") and len(arg_strings) == 1 and arg_strings[0].startswith("["):
            # every value as it is written: the fraction 1_30 would be the number 130
            values = _read_value(action.dest, arg_strings[0], yaml.BaseLoader)
            arg_strings = [str(value) for value in values]
        return super()._get_values(action, arg_strings)

    def value(self, name: str, value: Any) -> Any:
        """A recipe's value of a field, as the command line would read it."""
        action, hint = self._option_string_actions[f"--{name}"], self.hints[name]
        known = {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
        if action.nargs != "+" and isinstance(value, dict | list) and type(value) in known:
            return value  # transformers' own fields, and variants: none of them can be told in words
        for one in value if isinstance(value, list) else [value]:
            if action.type is str and not isinstance(one, str | bool | NoneType):
                raise ArgumentError(action, f'{one} is no text; YAML keeps what is in quotes, as "1_30"')
        return self._get_values(action, [as_word(value)])


def as_word(value: Any) -> str:
    """The value of a field as the parser reads it."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def parse_recipe(
    types: Sequence[type], argv: Sequence[str] | None = None, defaults: Mapping[str, Any] | None = None
) -> list:
    """Reads `[recipe.yaml] [--field value ...]` into one instance of each dataclass; the value `null` is None.

    Args:
        defaults: of fields, in place of the dataclasses' own, as `read_recipe` has them.

    Raises:
        DataError: the recipe is missing, not YAML, has an unknown field (told with the nearest known one), or a value
            that does not fit.
        UsageError: an unknown argument, or a value that does not fit.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _RecipeParser(types)
    parser.set_defaults(**(defaults or {}))
    if argv and not argv[0].startswith("-"):
        parser.set_defaults(**read_recipe(Path(argv.pop(0)), types))
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if unknown:
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            raise UsageError(f"{name!r} belongs to no argument; a recipe is given first")
        raise UsageError(f"unknown argument {name!r}{nearest(name.lstrip('-'), parser.hints)}")
    return parsed


def read_recipe(path: Path, types: Sequence[type], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A YAML file of fields of these dataclasses, with their values.

    Args:
        given: its fields, where it holds more than these.

    Raises:
        DataError: the recipe is missing, not YAML, has an unknown field (told with the nearest known one), or a value
            that does not fit.
    """
    parser, found = _RecipeParser(types), {}
    for name, value in (read_yaml(path) if given is None else given).items():
        if name not in parser.hints:
            raise DataError(f"{path}: unknown field {name!r}{nearest(str(name), parser.hints)}")
        try:
            found[name] = parser.value(name, value)
        except (ArgumentError, UsageError) as error:
            raise DataError(f"{path}: {name}: {getattr(error, 'message', error)}") from None
    return found


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's loaders silently take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(problem=f"{twice[0]} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """A YAML file that holds one mapping.

    Raises:
        DataError: it is missing, not a text file, not YAML, has a key twice, or holds something else.
    """
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader) or {}
    except FileNotFoundError:
        raise DataError(f"{path}: no such recipe") from None
    except OSError as error:  # a folder, say
        raise DataError(f"{path}: cannot be read as a recipe ({error.strerror}); a YAML file would be right") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error.reason}); a YAML file would be right") from None
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(recipe, dict):
        raise DataError(f"{path}: holds a {type(recipe).__name__}; a recipe is a mapping of fields to values")
    return recipe


def split_sections(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """A program's own arguments, and the values of those with a dot in their name, as YAML reads them (`--a.b 1 2`: a
    list; `--a.b=1` is `--a.b 1`).

    Raises:
        UsageError: no value, or one that is not YAML.
    """
    own: list[str] = []
    dotted: dict[str, list[str]] = {}
    values = own
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--") and "." in name:
            values = dotted[name[2:]] = []  # given twice, the second counts
            if equals:
                values.append(value)
                values = own  # what follows is no value of it
            continue
        if word.startswith("--"):
            values = own
        values.append(word)
    if empty := [name for name, given in dotted.items() if not given]:
        raise UsageError(f"--{empty[0]}: a value is missing")
    read = {name: [_read_value(name, value) for value in given] for name, given in dotted.items()}
    return own, {name: given if len(given) > 1 else given[0] for name, given in read.items()}


def _read_value(name: str, text: str, loader: type = yaml.SafeLoader) -> Any:
    try:
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError):
        hint = 'a list is `a b`, or "[a, b]" in quotes'
        raise UsageError(f"--{name}: {text!r} is not a YAML value; {hint}") from None
