"""Sequence-based fraud detection, a pure library; these are the names for a notebook, all else is in its module.

config = fraud.load_config("config.toml")
bundle = fraud.train(fraud.read_log(config), config, "bundle")
fraud.compare(fraud.read_log(config), config).words()
fraud.load_bundle("bundle").score(frame)          # a DataFrame or an Arrow table in the log's columns
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fraud.bundle import load_bundle
    from fraud.comparison import compare
    from fraud.config import load_config
    from fraud.judging import train
    from fraud.logs import from_pandas, from_table, read_log

__all__ = ["compare", "from_pandas", "from_table", "load_bundle", "load_config", "read_log", "train"]

_HOMES = {
    "compare": "fraud.comparison",
    "from_pandas": "fraud.logs",
    "from_table": "fraud.logs",
    "load_bundle": "fraud.bundle",
    "load_config": "fraud.config",
    "read_log": "fraud.logs",
    "train": "fraud.judging",
}


def __dir__() -> list[str]:
    """Return the public names, for completion in a notebook."""
    return list(__all__)


def __getattr__(name: str) -> object:
    """Return a public name, importing its module when first asked for: `import fraud` alone loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fraud' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
