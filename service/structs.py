"""The typed structs that bytes are decoded into: for a bundle's declared fields, for labels, for batches.

What a type can say (length, range, which keys there are) is said here, so that the decoder checks it on the way.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, Optional

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.fields import Field, Fields
from service.values import LARGEST_INTEGER, MAX_CHARACTERS, MAX_SESSION_CHARACTERS

_Text = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]
_SessionText = Annotated[str, Meta(min_length=1, max_length=MAX_SESSION_CHARACTERS)]


class LabelBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/labels."""

    label: Literal[0, 1] | bool
    user_id: _Text | UnsetType = UNSET
    event_id: _Text | UnsetType = UNSET
    session_id: _SessionText | UnsetType = UNSET
    known_at: str | UnsetType = UNSET
    source: _Text | UnsetType = UNSET


def _declared_types(fields: Fields) -> list[Any]:  # Any: annotations, which have no common type
    def annotation(field: Field) -> Any:
        if field.kind == "text":
            return _Text if field.is_required else Optional[_Text]  # noqa: UP045  # pyright knows no | of an Annotated
        if field.kind == "integer":
            return Annotated[int, Meta(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)]
        if field.kind == "amount":
            return Optional[Annotated[float, Meta(ge=fields.lowest_amount, le=fields.max_amount)]]  # noqa: UP045
        return Optional[Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]]  # noqa: UP045

    return [annotation(field) for field in fields.declared]


def request_struct(fields: Fields, *, is_id_required: bool) -> type[msgspec.Struct]:
    """Return the struct of a request; keys are renamed, since a column may be called anything."""
    declared = list(zip(fields.declared, _declared_types(fields), strict=True))
    type_text = Annotated[str, Meta(min_length=1, max_length=fields.max_type_characters)]
    event: list[Any] = [("event_id", _Text) if is_id_required else ("event_id", _Text | UnsetType, UNSET), ("ts", str)]
    event.append(("type", Literal["event"] | UnsetType, UNSET) if fields.fixed_type else ("type", type_text))
    beside: list[Any] = []
    names: dict[str, str] = {}
    for place, (field, kind) in enumerate(declared):
        name = f"f{place}"
        names[name] = field.key
        event.append((name, kind) if field.role == "order" else (name, kind | UnsetType, UNSET))
        if field.is_beside:
            beside.append((name, kind | UnsetType, UNSET))
    event_struct = msgspec.defstruct(
        "Event", event, rename=names, kw_only=True, forbid_unknown_fields=True, gc=False
    )  # fmt: skip
    events = Annotated[list[event_struct], Meta(min_length=1, max_length=fields.max_events)]  # type: ignore[valid-type]
    request: list[Any] = [("user_id", _Text), ("events", events), ("explain", bool | UnsetType, UNSET), *beside]
    return msgspec.defstruct("Request", request, rename=names, kw_only=True, forbid_unknown_fields=True)


def batch_struct(fields: Fields) -> type[Any]:  # Any: a struct that is made at run time
    """Return the struct of a batch, whose sessions stay bytes until each is decoded by itself."""
    sessions = Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=fields.max_events)]
    return msgspec.defstruct("Batch", [("sessions", sessions)], forbid_unknown_fields=True)
