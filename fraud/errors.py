"""The one tree of errors. The edges turn it into an exit code or an HTTP status; nothing in between catches it.

FraudError
├── DataError     the input is wrong: a file nobody can read, a table without the declared column
├── ConfigError   the operator is wrong: an unknown name, a value out of range, an output that exists
└── BundleError   the bundle is wrong: a changed byte, another format, scores that are not the golden ones
"""

from __future__ import annotations


class FraudError(Exception):
    """Base of every error this library raises on purpose; its text is written for the person who can mend it."""


class DataError(FraudError):
    """The input is wrong; the text names the file, the field, the value and what was expected."""


class ConfigError(FraudError):
    """The configuration or an argument is wrong; the text names the setting, the value and what was expected."""


class BundleError(FraudError):
    """The bundle cannot be trusted; the text names the file inside it and what was expected."""
