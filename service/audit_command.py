"""`fraud audit`: the arguments of its commands, and what they found in words or JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from service.audit import Verdict, verify, words
from service.heads import read_heads, write_heads
from service.state.opening import STATE_URL, open_existing_store

EXIT_DONE, EXIT_FAILED = 0, 1
_TIMEOUT_S = 60.0  # nobody waits for an answer, and a batch may come from a slow disk


def audit_command(arguments: Sequence[str]) -> int:
    """Run `audit verify` or `audit replay` and return its exit code: 1 where something is not as it was.

    Raises FraudError and StoreDown.
    """
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--state", default=STATE_URL, metavar="URL")
    shared.add_argument("--json", action="store_true")
    parser = argparse.ArgumentParser(prog="fraud audit", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("verify", parents=[shared]).add_argument("--head", type=Path, metavar="FILE")
    replay = commands.add_parser("replay", parents=[shared])
    replay.add_argument("decision_id", metavar="DECISION_ID")
    replay.add_argument("--bundles", type=Path, default=Path("bundle"), metavar="DIR")
    options = parser.parse_args(arguments)
    return _verify(options) if options.command == "verify" else _replay(options)


def _verify(options: argparse.Namespace) -> int:
    heads = {} if options.head is None else read_heads(options.head)
    with closing(open_existing_store(options.state, now_us=wall_us, timeout_s=_TIMEOUT_S)) as store:
        verdict = verify(store, heads)
    if options.head is not None and not verdict.broken:
        write_heads(options.head, verdict.heads)
    _say(_document(verdict) if options.json else words(verdict))
    return EXIT_FAILED if verdict.broken else EXIT_DONE


def _replay(options: argparse.Namespace) -> int:
    from service.replay import Bundles, replay  # the models' runtime, which verifying does without

    with closing(open_existing_store(options.state, now_us=wall_us, timeout_s=_TIMEOUT_S)) as store:
        replayed = replay(options.decision_id, store, Bundles(options.bundles))
    if options.json:
        _say(replayed._asdict())
    else:
        lines = [f"{replayed.decision_id}: {_REPLAY_WORDS[replayed.verdict]}"]
        lines += [
            f"  answered {score!r} {decision or '-'}, again {again!r} {decided or '-'}"
            for score, decision, again, decided in zip(
                replayed.scores, replayed.decisions, replayed.again, replayed.decided_again, strict=True
            )
        ]
        _say(lines)
    return EXIT_DONE if replayed.verdict in {"equal", "erased"} else EXIT_FAILED


_REPLAY_WORDS = {
    "equal": "the same again, to the bit",
    "differs": "DIFFERS (on another type of machine it may, by rounding)",
    "erased": "erased, with its user",
    "unknown": "no such decision",
}


def _say(said: Mapping[str, object] | Sequence[str]) -> None:
    text = json.dumps(said, indent=1) if isinstance(said, Mapping) else "\n".join(said)
    sys.stdout.write(f"{text}\n")


def wall_us() -> int:
    """Return the time of this machine in microseconds since 1970."""
    return time.time_ns() // 1000


def _document(verdict: Verdict) -> dict[str, object]:
    return {
        "verified": not verdict.broken,
        "shards": verdict.n_shards,
        "records": verdict.n_records,
        "erased": verdict.n_erased,
        "erasures": verdict.n_erasures,
        "new_erasures": verdict.n_new_erasures,
        "broken": [fault._asdict() for fault in verdict.broken],
        "heads": {
            str(shard): {"number": head.number, "hash": head.hash.hex()}
            for shard, head in sorted(verdict.heads.items())
        },
    }
