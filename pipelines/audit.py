"""`fraud audit` and `fraud keys`: declared here, done by the service, which reads the state."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.serve import DEFAULT_STATE, State, become

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

audit = typer.Typer(
    help="Are all decisions still there, unchanged? Would one come out the same again?",
    no_args_is_help=True,
    rich_markup_mode=None,
)
keys = typer.Typer(help="Keys of the HTTP API: make, list, revoke.", no_args_is_help=True, rich_markup_mode=None)


class Role(StrEnum):
    """What a key is for; the service says which routes each may ask."""

    scorer = "scorer"
    labeller = "labeller"
    analyst = "analyst"
    admin = "admin"


@audit.command("verify")
def audit_verify(
    state: State = DEFAULT_STATE,
    head: Annotated[
        Path | None,
        typer.Option(
            "--head", metavar="FILE", help="Compare with the ends kept there, and keep the new ones if all is well."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find any record that was changed, moved, cut off or taken away; exit 1 where there is one."""
    arguments = ["verify", "--state", state]
    arguments += ["--head", str(head)] if head is not None else []
    become("audit", [*arguments, *(["--json"] if as_json else [])])


@audit.command("replay")
def audit_replay(
    decision_id: Annotated[str, typer.Argument(metavar="DECISION_ID", help="As answered, such as 1-2a.")],
    bundles: Annotated[
        Path, typer.Option("--bundles", metavar="DIR", help="A bundle, or a folder with the one that decided.")
    ] = Path("bundle"),
    state: State = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Score a decision again from its record; exit 1 where it does not come out the same to the bit."""
    arguments = ["replay", decision_id, "--bundles", str(bundles), "--state", state]
    become("audit", [*arguments, *(["--json"] if as_json else [])])


@keys.command("add")
def keys_add(
    role: Annotated[Role, typer.Option("--role", help="What the key is for.")],
    state: State = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once; the state keeps its hash."""
    become("keys", ["add", "--role", role.value, "--state", state, *(["--json"] if as_json else [])])


@keys.command("list")
def keys_list(state: State = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """List the keys by the first digits of their hashes."""
    become("keys", ["list", "--state", state, *(["--json"] if as_json else [])])


@keys.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="How its hash begins, as listed: four digits or more.")],
    state: State = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Forget a key: requests with it are refused."""
    become("keys", ["revoke", key, "--state", state, *(["--json"] if as_json else [])])
