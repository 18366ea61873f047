"""Typed settings: frozen dataclasses from TOML and back, with dotted overrides.

    configs/demo.toml ─read─▶ {"train": {"steps": 300}} ─train.steps=10─▶ build ─▶ Config ─dumps─▶ config.toml

The dataclass is the schema: its sections are dataclasses, their fields have the types bool, int, float, str, Literal of
words, tuple[X, ...] and X | None (whose default is None, because TOML cannot write it). Nothing is guessed: an unknown
key or a value of another type is an error that names the key, what was expected and what was got.
"""

import dataclasses
import difflib
import json
import math
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CONFIGS = Path(__file__).parent / "configs"
SHORT = 60  # characters of a setting in a message
LONG_LIST = 100  # characters; longer ones are written with one item a line


def load(schema: type[T], source: str | Path, overrides: Sequence[str] = ()) -> T:
    """Returns the settings of a TOML file, found by name or path, after `section.key=value` overrides."""
    return build(schema, override(schema, read(source), overrides), where=str(source))


def read(source: str | Path) -> dict[str, Any]:
    """Returns the plain values of a TOML file, found by name or path."""
    path = find(source)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected TOML in {path}, got: {error}") from None


def find(source: str | Path) -> Path:
    """Returns the file of a config given by path or by name (shakespeare_cpu or shakespeare-cpu).

    A text that ends in .toml or has a path separator is a path; anything else is a name.
    """
    path = Path(source)
    if path.suffix == ".toml" or len(path.parts) > 1:
        if not path.is_file():
            raise FileNotFoundError(f"expected a config file, found none at {path}")
        return path
    name = str(source).replace("-", "_")
    known = sorted(file.stem for file in CONFIGS.glob("*.toml"))
    if name not in known:
        raise FileNotFoundError(f"no config is named {source}; {_hint(name, known)}")
    return CONFIGS / f"{name}.toml"


def override(schema: type[Any], values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns `values` with each `section.key=value` put in; the text is read as the field's type asks.

    Lists are written a,b or ["a", "b"]; `none` unsets an optional key.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, field = key.strip().partition(".")
        if not (equals and section and dot and field):
            raise ValueError(f"expected section.key=value, got {text!r}; hint: train.steps=100")
        kind = _fields(_fields(schema, section, "")[section], field, f"{section}.")[field]
        table = result.setdefault(section, {})
        if not isinstance(table, dict):
            raise ValueError(f"{section} must be a table, got {table!r}")
        table[field] = _parse(value.strip(), kind)
    return result


def build(schema: type[T], values: Mapping[str, Any], *, where: str = "the config") -> T:
    """Returns `schema` filled from nested mappings; every error ends with `where`."""
    try:
        _check_names(schema, values, "")
        built: T = _dataclass(schema, values, "")
    except ValueError as error:
        message, hint, cure = str(error).partition("; hint: ")
        raise ValueError(f"{message} (in {where}){hint}{cure}") from None
    return built


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the nested plain values of a config; keys that are None are left out, tuples are lists."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            out[field.name] = to_dict(value)
        elif value is not None:
            out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def dumps(config: Any) -> str:
    """Returns the resolved config as TOML: `load` of it gives an equal config."""
    values = to_dict(config)
    lines = [f"{key} = {_toml(value)}\n" for key, value in values.items() if not isinstance(value, dict)]
    for name, section in values.items():
        if isinstance(section, dict):
            lines.append(f"\n[{name}]\n" if lines else f"[{name}]\n")
            lines.extend(f"{key} = {_toml(value)}\n" for key, value in section.items())
    return "".join(lines)


def differences(one: Any, other: Any) -> list[tuple[str, Any, Any]]:
    """Returns (section.key, value in one, value in other) for every setting in which two configs differ."""
    flat = [
        {f"{s}.{k}": v for s, table in to_dict(config).items() for k, v in table.items()} for config in (one, other)
    ]
    keys = list(dict.fromkeys([*flat[0], *flat[1]]))
    return [(key, flat[0].get(key), flat[1].get(key)) for key in keys if flat[0].get(key) != flat[1].get(key)]


def short(value: object) -> str:
    """Returns a setting for a message: long lists and texts cut, None as nothing."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"


def _check_names(schema: type[Any], values: object, prefix: str) -> None:
    """Refuses names that there are none of, in all sections: what is missing is most often what was mistyped."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'a config'} must be a table, got {values!r}")
    for key in values:
        _fields(schema, key, prefix)
    for key, value in values.items():
        if dataclasses.is_dataclass(kind := _fields(schema, key, prefix)[key]):
            _check_names(typing.cast(type[Any], kind), value, f"{prefix}{key}.")


def _dataclass(schema: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    kinds = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{field.name} is required ({_describe(kinds[field.name])}), got nothing")
    return schema(**{key: _convert(value, kinds[key], f"{prefix}{key}") for key, value in values.items()})


def _fields(schema: type[Any], key: str, prefix: str) -> dict[str, Any]:
    """Returns the field types of `schema`, which must have `key`."""
    kinds = typing.get_type_hints(schema)
    if key not in kinds:
        noun = "key" if prefix else "section"
        raise ValueError(f"unknown {noun} {prefix}{key}; {_hint(key, list(kinds), prefix)}")
    return kinds


def _hint(name: str, known: Sequence[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if nearest:
        return f"hint: did you mean {prefix}{nearest[0]}"
    return f"hint: known names are {', '.join(known)}"


def _convert(value: object, kind: Any, key: str) -> object:
    """Returns `value` as the field type `kind` holds it. An int is a float too; nothing else is turned."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type[Any], kind), typing.cast(Mapping[str, Any], value), f"{key}.")
    inner, is_optional = _optional(kind)
    if value is None and is_optional:
        return None
    if typing.get_origin(inner) is typing.Literal and value in typing.get_args(inner):
        return value
    if typing.get_origin(inner) is tuple and isinstance(value, (list, tuple)):
        item = typing.get_args(inner)[0]
        return tuple(_convert(v, item, f"{key}[{i}]") for i, v in enumerate(value))
    if inner is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is inner and (inner is not float or math.isfinite(typing.cast(float, value))):
        return value
    raise ValueError(f"{key} must be {_describe(kind)}, got {value!r}")


def _optional(kind: Any) -> tuple[Any, bool]:
    """Returns X and whether None is allowed, for the type X or X | None."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (inner,) = (arg for arg in typing.get_args(kind) if arg is not types.NoneType)
        return inner, True
    return kind, False


def _describe(kind: Any) -> str:
    inner, is_optional = _optional(kind)
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    if typing.get_origin(inner) is typing.Literal:
        text = " or ".join(f'"{word}"' for word in typing.get_args(inner))
    elif typing.get_origin(inner) is tuple:
        text = f"a list, each item {_describe(typing.get_args(inner)[0])}"
    else:
        text = words.get(inner, "a table")
    return f"{text} (or unset)" if is_optional else text


def _parse(text: str, kind: Any) -> object:
    """Returns the value that an override's text stands for; text that does not fit is left for `_convert` to refuse."""
    inner, is_optional = _optional(kind)
    if is_optional and text == "none":
        return None
    if inner is str or typing.get_origin(inner) is typing.Literal:
        return text
    if typing.get_origin(inner) is tuple and not text.startswith("["):
        item = typing.get_args(inner)[0]
        return [_parse(part.strip(), item) for part in text.split(",")] if text else []
    try:
        table = tomllib.loads(f"x = {text}")
    except (ValueError, RecursionError):
        return text
    return table["x"] if len(table) == 1 else text


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        items = [_toml(item) for item in value]
        if sum(map(len, items)) > LONG_LIST:
            return "[\n" + "".join(f"  {item},\n" for item in items) + "]"
        return f"[{', '.join(items)}]"
    assert isinstance(value, (int, float)), value
    return repr(value)
