"""/docs: the OpenAPI document as one page of plain HTML. It loads nothing, from here or from anywhere else."""

from __future__ import annotations

import json
from html import escape
from typing import Any

Tree = dict[str, Any]  # Any: JSON
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{background:#f4f4f4;padding:1rem;overflow:auto}code{font-size:.9em}"
    "h2{border-top:1px solid #ccc;padding-top:1rem}"
    "td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}"
)


def documentation(document: Tree) -> str:
    """Return the page of an OpenAPI document."""
    about = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{escape(about['title'])}: HTTP API</title><style>{_STYLE}</style>",
        f"<h1>{escape(about['title'])}: HTTP API</h1><p>{escape(about['summary'])}. {escape(about['description'])}</p>",
        "<p>For programs: <a href=/openapi.json>/openapi.json</a>, which any OpenAPI viewer reads. "
        "A key is sent in the header <code>X-API-Key</code>; without configured keys none is needed.</p>",
    ]
    for path, operations in document["paths"].items():
        parts += [
            _operation(method.upper(), path, operations[method], document)
            for method in ("get", "post", "delete")
            if method in operations
        ]
    parts.append("<h2 id=schemas>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<h3 id='{escape(name)}'>{escape(name)}</h3><pre>{escape(json.dumps(schema, indent=1))}</pre>")
    return "".join(parts) + "</html>"


def _operation(method: str, path: str, operation: Tree, document: Tree) -> str:
    rows = "".join(
        f"<tr><td>{escape(code)}<td>{escape(response['description'])}{_schema_link(response)}"
        for code, response in sorted(operation["responses"].items())
    )
    head = f"<h2><code>{method} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
    body = operation.get("requestBody")
    if body is not None:
        name = _schema_name(body["content"]["application/json"]["schema"])
        example = document["components"]["schemas"][name]["examples"][0]
        head += (
            f"<p>Body: <a href='#{escape(name)}'>{escape(name)}</a>, for example</p>"
            f"<pre>{escape(json.dumps(example, indent=1))}</pre>"
        )
    return f"{head}<table><tr><th>Status<th>Meaning{rows}</table>"


def _schema_name(schema: Tree) -> str:
    return schema.get("$ref", "").rpartition("/")[2]


def _schema_link(response: Tree) -> str:
    for content in response.get("content", {}).values():
        name = _schema_name(content["schema"])
        if name:
            return f" (<a href='#{escape(name)}'>{escape(name)}</a>)"
    return ""
