"""What the registry and the tracker keep of a retraining: on which data, with which verdict, both models side by side.

So a second call on the same data finds out that there is nothing to do, on whatever machine it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fraud.config import Config, config_to_toml
from fraud.readers import log_files
from pipelines.challenge import Judgement
from pipelines.records import RunRecord
from pipelines.registry import Registry, Version
from pipelines.train import parameters_of
from pipelines.transitions import ROLLED_BACK, SINCE

Json = dict[str, Any]  # Any: JSON
PROMOTED, REFUSED, UNCHANGED = "promoted", "refused", "unchanged"
RETRAIN_KEY = "fraud.retrain_key"  # a tag of runs and versions: which data and settings made them
_RETRAINED = "fraud.retrained"  # the registered model's tag: what the last retraining read, and what came of it
_NOTED = {"key", "verdict", "reason", "version", "champion", "is_done"}
_HASHED_BYTES = 2**20


def retrain_key(config: Config, accepted_sources: Sequence[str]) -> str:
    """Return sha256 hex of the bytes of the log and the labels, and of all settings but where it is tracked."""
    blocks = config_to_toml(config).split("\n\n")
    digest = hashlib.sha256("".join(block for block in blocks if not block.startswith("[tracking]")).encode())
    digest.update(json.dumps(sorted(accepted_sources)).encode())
    labels = config.labels.path if config.labels is not None else None
    for pattern in (config.log.events, labels):
        for path in [] if pattern is None else log_files(pattern, config.root):
            with path.open("rb") as file:
                while block := file.read(_HASHED_BYTES):
                    digest.update(block)
    return digest.hexdigest()


def remember(
    registry: Registry, key: str, document: Mapping[str, Any], champion: Version | None, *, is_done: bool
) -> None:
    """Write down what came of a retraining. champion: whom it was judged against.

    is_done: False before a promotion, which `finish` then carries out if this process does not come to it.
    """
    last = {"key": key, "verdict": document["verdict"], "reason": document["reason"], "version": document["version"]}
    last |= {"champion": None if champion is None else champion.number, "is_done": is_done}
    registry.note(_RETRAINED, json.dumps(last))


def finish(registry: Registry) -> None:
    """Carry out the promotion that an earlier retraining decided on and was killed before; nothing where all is done.

    It is overtaken where the champion is another by now than it was judged against.
    """
    registry.finish_pending()
    last = _last(registry)
    if last is None or last["is_done"]:
        return
    champion, version = registry.champion(), registry.numbered(str(last["version"]))
    is_as_judged = (None if champion is None else champion.number) == last["champion"]
    # One that was champion already has been: somebody has rolled it back since.
    if is_as_judged and version is not None and not {SINCE, ROLLED_BACK} & set(version.tags):
        registry.promote(version, expected_champion=last["champion"], reason=f"{last['reason']}, finished later")
    registry.note(_RETRAINED, json.dumps(last | {"is_done": True}))


def unchanged(registry: Registry, key: str) -> Json | None:
    """Return the verdict "unchanged" where the same data were retrained on before, and nothing has changed since."""
    last = _last(registry)
    if last is None or last["key"] != key:
        return None
    champion = registry.champion()
    number = None if champion is None else champion.number
    if last["verdict"] == REFUSED and number != last["champion"]:
        return None  # judged against another champion
    if last["verdict"] == REFUSED:
        text = f"refused before ({last['reason']}), and neither the data nor the champion have changed"
    elif number == last["version"]:
        text = f"version {number}, the champion, was made from these data"
    else:
        text = f"version {last['version']} was made from these data and promoted, but it is not the champion any more"
    figures = None if champion is None else {"version": champion.number, "bundle": champion.bundle}
    return verdict(UNCHANGED, "same_data", text, champion=figures)


def _last(registry: Registry) -> Json | None:
    """Return what the last retraining wrote down; None where it wrote nothing, or somebody else wrote over it."""
    noted = registry.noted(_RETRAINED)
    try:
        last = json.loads(noted or "")
    except ValueError:
        return None
    return last if isinstance(last, dict) and set(last) == _NOTED else None


def verdict(verdict: str, reason: str, text: str, *, champion: Json | None) -> Json:
    """Return the document of a retraining that made no challenger."""
    return {
        "verdict": verdict,
        "reason": reason,
        "text": text,
        "champion": champion,
        "challenger": None,
        "version": None,
        "gate": [],
        "checks": [],
        "periods": None,
        "labels": [],
    }


def verdict_record(
    document: Mapping[str, Any], judgement: Judgement, config: Config, *, record_id: str, key: str, fit_s: float
) -> RunRecord:
    """Return what the tracker is told of a verdict: the figures of both models in one run."""
    return RunRecord(
        name=f"retrain: {document['verdict']}",
        parameters=parameters_of(config),
        history=(),
        metrics=_side_by_side(judgement),
        tags={"verdict": document["verdict"], "reason": document["reason"], RETRAIN_KEY: key},
        fit_s=fit_s,
        id=record_id,
    )


def _side_by_side(judgement: Judgement) -> dict[str, float]:
    """Return the figures of both scorers and the differences of the gate, as metrics of one run."""
    figures: dict[str, float] = {}
    for name, metrics in (("challenger", judgement.challenger), ("champion", judgement.champion)):
        if metrics is not None:
            cells = metrics.to_json().items()
            figures |= {f"{name}_{key}": float(value) for key, value in cells if isinstance(value, int | float)}
    for ruling in judgement.rulings:
        if ruling.difference is not None and ruling.ci is not None:
            name = f"difference_{ruling.text.split()[0]}"
            figures |= {name: ruling.difference, f"{name}_low": ruling.ci[0], f"{name}_high": ruling.ci[1]}
    return figures
