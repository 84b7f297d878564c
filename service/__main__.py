"""`python -m service COMMAND`: what `fraud serve`, `warm`, `audit`, `keys` and `labels` become.

Errors are one line on stderr; exit 0 done, 1 failed, 2 bad input or configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def main() -> int:
    """Run the command of argv and return the exit code."""
    from fraud.errors import FraudError
    from service.state.store import StoreDown

    try:
        return _run(sys.argv[1:])
    except FraudError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_INPUT
    except StoreDown as error:
        sys.stderr.write(f"error: --state: {error}\n")
        return EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror or error}\n")
        return EXIT_FAILED


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="fraud", allow_abbrev=False)
    parser.add_argument("command", choices=("serve", "warm", "audit", "keys", "labels"))
    command, rest = parser.parse_args(arguments[:1]).command, arguments[1:]
    if command == "serve":
        return _serve(_serve_options().parse_args(rest))
    if command == "warm":
        return _warm(_warm_options().parse_args(rest))
    if command == "audit":
        from service.audit_command import audit_command

        return audit_command(rest)
    if command == "labels":
        from service.label_export import labels_command

        return labels_command(rest)
    from service.keys import keys_command

    return keys_command(rest)


def _serve_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fraud serve", allow_abbrev=False)
    parser.add_argument("path", type=Path)
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--shadow", type=Path)
    parser.add_argument("--shadow-rate", type=float, default=1.0)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--state", default="sqlite:///fraud-state.db")
    parser.add_argument("--state-timeout", type=float, default=2.0)
    parser.add_argument("--clock", choices=("wall", "log"), default="wall")
    parser.add_argument("--fail", choices=("open", "closed"), default="closed")
    parser.add_argument("--wait", type=float, default=60.0)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER")
    return parser


def _warm_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fraud warm", allow_abbrev=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("events")
    parser.add_argument("--state", default="sqlite:///fraud-state.db")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--json", action="store_true", dest="as_json")
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    from service.serve import ServeOptions, limits_of, serve

    return serve(
        ServeOptions(
            path=arguments.path,
            follow=arguments.follow,
            shadow=arguments.shadow,
            shadow_rate=arguments.shadow_rate,
            host=arguments.host,
            port=arguments.port,
            workers=arguments.workers,
            state=arguments.state,
            state_timeout_s=arguments.state_timeout,
            clock=arguments.clock,
            fail=arguments.fail,
            wait_s=arguments.wait,
            users=arguments.users,
            limits=limits_of(arguments.limit),
        )
    )


def _warm(arguments: argparse.Namespace) -> int:
    import json
    import time

    from fraud.bundle import load_bundle
    from service.clock import Clock
    from service.state.opening import open_store
    from service.warm import warm

    began = time.monotonic()
    clock = Clock("wall")
    bundle = load_bundle(arguments.bundle)
    store = open_store(arguments.state, now_us=clock.wall_us)
    is_watched = sys.stderr.isatty()

    def progress(n_done: int, n_users: int) -> None:
        if is_watched:
            sys.stderr.write(f"\r{n_done:,} of {n_users:,} users")
            sys.stderr.flush()

    try:
        warmed = warm(
            bundle.scorer.config,
            arguments.events,
            arguments.config,
            store,
            now_us=clock.wall_us,
            progress=progress,
        )
    finally:
        store.close()
    if is_watched:
        sys.stderr.write("\n")
    seconds = round(time.monotonic() - began, 1)
    if arguments.as_json:
        sys.stdout.write(json.dumps({**warmed._asdict(), "seconds": seconds}) + "\n")
        return 0
    sys.stdout.write(f"{warmed.events:,} events of {warmed.users:,} users are now in the state ({seconds} s)\n")
    if warmed.users_there:
        sys.stdout.write(f"{warmed.users_there:,} users were there already and were left alone\n")
    if warmed.quarantined:
        sys.stdout.write(f"{warmed.quarantined:,} rows cannot be used: `fraud prepare` says why\n")
    if arguments.config is None and bundle.scorer.config.fields.entity:
        sys.stdout.write(
            "no labels: the frauds known of each entity count as 0 (--config CONFIG names a label table)\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
