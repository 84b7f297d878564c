"""How the champion changes: what is to happen is written into the registry, done, and struck out.

A promotion or a rollback moves two aliases, and no tracker moves two at once. So the whole of it stands first in a tag
of the registered model, and whoever writes next finishes one that was cut short. The alias `champion` alone says who
answers; at every moment it names one whole version. Knows MLflow's client, and nothing of bundles.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from time import sleep
from typing import TYPE_CHECKING, Literal

from fraud.errors import ConfigError
from pipelines.mlflow_client import found

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
SINCE, BEFORE = "fraud.champion_since", "fraud.champion_before"
ROLLED_BACK, REASON = "fraud.rolled_back_at", "fraud.reason"
_PENDING = "fraud.transition"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A change of the champion, by the numbers of versions. replaced: who was it; previous: who is to be gone back to.

    at: RFC 3339.
    """

    kind: Literal["promotion", "rollback"]
    champion: str
    previous: str | None
    replaced: str | None
    reason: str
    at: str


def promotion(champion: str | None, promoted: str, reason: str) -> Transition:
    """Return that a version takes the place of the champion, which becomes the previous one."""
    return Transition(
        kind="promotion", champion=promoted, previous=champion, replaced=champion, reason=reason, at=_now()
    )


def rollback(champion: str, previous: str, before: str | None) -> Transition:
    """Return that the previous one takes the place of the champion again, and the one before it is the previous one."""
    reason = f"rolled back from version {champion}"
    return Transition(kind="rollback", champion=previous, previous=before, replaced=champion, reason=reason, at=_now())


def carry_out(client: MlflowClient, name: str, transition: Transition, *, pause_s: float) -> None:
    """Change the champion of the model `name`; raise ConfigError where somebody else changes it at the same moment.

    No tracker compares and sets. So it is Fischer's mutual exclusion, of one register and a pause (in L. Lamport, "A
    Fast Mutual Exclusion Algorithm", 1987): those that found nothing written each write; after the pause the last one
    finds its own words there and goes on, and the others withdraw. It holds while the calls of one transition take less
    than the pause; where they take longer, the last one is obeyed, and the others may not hear of it.
    """
    text = json.dumps(asdict(transition))
    client.set_registered_model_tag(name, _PENDING, text)
    sleep(pause_s)
    if _tag(client, name) == text and aliases_of(client, name).get(CHAMPION) == transition.replaced:
        _move(client, name, transition)
    _strike_out(client, name, text)
    # Ours all the same where another found it in the pause, and finished it.
    if aliases_of(client, name).get(CHAMPION) != transition.champion:
        raise ConfigError(
            f"the champion of the model {name!r} was changed by somebody else at the same moment; "
            "`fraud models` shows who it is"
        )


def finish_pending(client: MlflowClient, name: str) -> Transition | None:
    """Return the transition that was cut short, finished now; None where there is none, or it is overtaken.

    It is overtaken where the champion is another by now, or the version is gone: somebody has used MLflow's own page.
    """
    transition = pending(client, name)
    if transition is None:
        return None
    text = _tag(client, name)
    is_open = aliases_of(client, name).get(CHAMPION) in (transition.replaced, transition.champion)
    if is_open and _is_there(client, name, transition.champion):
        _move(client, name, transition)
    else:
        transition = None
    _strike_out(client, name, text)
    return transition


def pending(client: MlflowClient, name: str) -> Transition | None:
    """Return the transition that was cut short; raise ConfigError where the tag that holds it is not one of ours."""
    text = _tag(client, name)
    if text is None:
        return None
    try:
        tree = json.loads(text)
        return Transition(**{field.name: tree[field.name] for field in fields(Transition)})
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"tag {_PENDING} of the model {name!r} in the registry: {text!r}; expected what a promotion writes there. "
            "Look at the aliases, and delete the tag"
        ) from None


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    """Return the number of the version that each alias names; nothing for a model that is not there."""
    model = _model(client, name)
    return {} if model is None else {alias: str(number) for alias, number in model.aliases.items()}


def _move(client: MlflowClient, name: str, transition: Transition) -> None:
    """Take every step; those that were taken before are taken again, and change nothing."""
    champion, previous, replaced = transition.champion, transition.previous, transition.replaced
    if previous is not None and not _is_there(client, name, previous):
        previous = None
    client.set_model_version_tag(name, champion, SINCE, transition.at)
    client.set_model_version_tag(name, champion, REASON, transition.reason)
    client.delete_model_version_tag(name, champion, ROLLED_BACK)
    if transition.kind == "promotion":
        client.set_model_version_tag(name, champion, BEFORE, replaced or "")
    elif replaced is not None and _is_there(client, name, replaced):
        client.set_model_version_tag(name, replaced, ROLLED_BACK, transition.at)
    # The champion last: whoever answers until then is still there to be gone back to.
    if previous is None:
        client.delete_registered_model_alias(name, PREVIOUS)
    else:
        client.set_registered_model_alias(name, PREVIOUS, previous)
    if aliases_of(client, name).get(CHALLENGER) == champion:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.set_registered_model_alias(name, CHAMPION, champion)


def _strike_out(client: MlflowClient, name: str, text: str | None) -> None:
    """Delete what was written ahead, unless another has been written over it."""
    if _tag(client, name) == text:
        client.delete_registered_model_tag(name, _PENDING)


def _is_there(client: MlflowClient, name: str, number: str) -> bool:
    return found(lambda: client.get_model_version(name, number)) is not None


def _tag(client: MlflowClient, name: str) -> str | None:
    model = _model(client, name)
    return None if model is None else model.tags.get(_PENDING)


def _model(client: MlflowClient, name: str) -> RegisteredModel | None:
    return found(lambda: client.get_registered_model(name))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
