"""The configuration that `fraud init` writes: TOML with a comment at each line that was not sure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_WIDTH = 38  # where comments begin


class Setting(NamedTuple):
    """One line: section.name = value, and what to say beside it. value None: no line, but for an example if doubted."""

    section: str
    name: str
    value: str | int | tuple[str, ...] | None
    comment: str = ""
    example: str = ""

    @property
    def path(self) -> str:
        """Return the name that `--set` knows the setting by."""
        return f"{self.section}.{self.name}"


def config_text(
    opening: Sequence[str], settings: Iterable[Setting], doubts: Mapping[str, Sequence[str]], closing: Sequence[str]
) -> str:
    """Return the TOML text. doubts: by the path of the setting they are about, each a line "# ?" above it."""
    lines = [f"# {text}".rstrip() for text in opening]
    section = ""
    for setting in settings:
        about = doubts.get(setting.path, ())
        if setting.value is None and not about:
            continue
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]"]
        lines += [f"# ? {plain(text)}" for text in about]
        if setting.value is not None:
            lines += _lines(setting, setting.value)
        elif setting.example:
            lines.append(f"# {setting.name} = {setting.example}")
    return "\n".join([*lines, "", *(f"# {plain(text)}".rstrip() for text in closing)]).rstrip() + "\n"


def _lines(setting: Setting, value: str | int | tuple[str, ...]) -> list[str]:
    line = f"{setting.name} = {toml_value(value)}"
    comment = f"# {plain(setting.comment)}" if setting.comment else ""
    if len(line) <= 100 or not isinstance(value, tuple):
        return [f"{line:<{_WIDTH - 2}}  {comment}".rstrip()]
    first = [comment] if comment else []
    return [*first, f"{setting.name} = [", *(f"  {toml_value(part)}," for part in value), "]"]


def toml_value(value: str | int | tuple[str, ...]) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "[" + ", ".join(toml_value(part) for part in value) + "]"


def plain(text: str) -> str:
    """Return text that fits in a comment: no line ends, no control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)
