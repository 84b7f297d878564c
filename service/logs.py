"""Log lines of the service: key=value, one line each, without anything a user or a caller sent.

No line speaks of a user: a decision is found by its id, and what was asked by its route and code.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import TextIO

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+\-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def pairs(event: str, **values: object) -> str:
    """Return "event=... name=value ...": values that are not plain words are quoted, control characters dropped."""
    return " ".join(f"{name}={_shown(value)}" for name, value in {"event": event, **values}.items())


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if _PLAIN.fullmatch(text):
        return text
    clean = _CONTROL.sub(" ", text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{clean}"'


class _Line(logging.Formatter):
    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; of an exception, its type and where it was raised, since its text may hold what was sent.

        asyncio's own messages hold the arguments of callbacks, which may be a request's bytes.
        """
        message = "event=asyncio_error" if record.name == "asyncio" else record.getMessage()
        if not message.startswith("event="):
            message = pairs("message", text=message)
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03}Z"
        line = f"ts={when} level={record.levelname.lower()} logger={record.name} {message}"
        if record.exc_info and record.exc_info[1] is not None:
            error, trace = record.exc_info[1], record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
            line += " " + pairs("", error=type(error).__name__, where=where).removeprefix('event="" ')
        return line


def configure_logs(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Send every log line of the process to `stream`, in this form; uvicorn's access log stays silent."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Line())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
