"""What is wrong with a configuration, in a line for each key; needs the sections' schema alone."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

_SECTION = {"model_type", "dict_type", "model_attributes_type"}
_LIST = {"tuple_type", "list_type"}
_KEY = re.compile(r"([a-z_.]+): ")


def explain(error: ValidationError, root: type[BaseModel], values: object) -> list[str]:
    """`key.of.the.section: what was expected, what came`; `values` are what was validated."""
    problems: dict[str, list[str]] = {}
    for problem in error.errors():
        where, told = _path(problem, values), _told(problem, root)
        key = _KEY.match(told)  # a check of a whole section names the key inside
        if key:
            where, told = f"{where}.{key[1]}".lstrip("."), told[key.end() :]
        problems.setdefault(where or "(top level)", []).append(told)
    return [f"{where}: {', or '.join(told)}" for where, told in problems.items()]


def meant(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' where one of `known` is close to `name`, in whatever case."""
    by_case = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), by_case, n=1)
    return f"; did you mean {by_case[close[0]]!r}?" if close else ""


def _path(problem: Any, values: Any) -> str:
    """The keys as the YAML has them: the names of a union's members, which it lacks, left out."""
    *above, last = problem["loc"] or (None,)
    kept = []
    for part in above:
        if _holds(values, part):
            values = values[part]
            kept.append(part)
    if problem["type"] == "missing" or _holds(values, last):
        kept.append(last)
    return ".".join(map(str, kept))


def _holds(values: Any, part: int | str | None) -> bool:
    return part in values if isinstance(values, dict) else isinstance(part, int)


def _told(problem: Any, root: type[BaseModel]) -> str:
    kind, given = problem["type"], problem["input"]
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(problem["loc"][-1])
        return f"unknown key{meant(key, _known_keys(root) - {key})}"  # it may be another section's
    if kind == "missing":
        return "required, but absent"
    if kind == "union_tag_not_found":
        return "name: required, but absent"
    if kind == "union_tag_invalid":
        known = [name.strip(" '") for name in context["expected_tags"].split(",")]
        told = meant(str(context["tag"]), known)
        return f"name: {context['tag']!r} is not known; known are {', '.join(known)}{told}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _SECTION:
        return f"expected a section (keys and values), got {_short(given)}"
    if kind in _LIST:
        return f"expected a list, got {_short(given)}"
    return f"{problem['msg']}, got {_short(given)}"


def _short(given: object) -> str:
    if isinstance(given, dict):
        return "a section"
    return "a list" if isinstance(given, list) and len(given) > 4 else repr(given)


def _known_keys(root: type[BaseModel]) -> set[str]:
    """Every key of every section reachable from the root."""
    keys: set[str] = set()

    def visit(schema: Any) -> None:
        if isinstance(schema, dict):
            keys.update(schema.get("properties", {}))
            for value in schema.values():
                visit(value)
        elif isinstance(schema, list):
            for value in schema:
                visit(value)

    visit(root.model_json_schema())
    return keys
