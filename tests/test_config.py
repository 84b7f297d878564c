"""The configuration: every mistake is refused by name, and what is written is read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fraud.config import config_to_toml, load_config, parse_config, state_hash
from fraud.errors import ConfigError

_LOG = '[log]\nevents = "log.csv"\n'
_TABLE = '[labels]\npath = "l.csv"\nkey = ["event_id"]\ncolumn = "fraud"\n'


def _parse(text: str, *overrides: str):  # noqa: ANN202 (Config)
    return parse_config(_LOG + text, source="c.toml", root=Path(), overrides=overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("[sesions]\ngap = '5m'\n", (), "unknown name 'sesions'; known here: log, fields, sessions"),
        ("[sessions]\ngapp = '5m'\n", (), "unknown name 'sessions.gapp'; known here: gap, scope, max_events"),
        ("[sessions]\ngap = 5\n", (), 'sessions.gap = 5: Value error, expected a duration such as "90s"'),
        ("[sessions]\nmax_events = 7\n", (), "sessions.max_events = 7"),
        ("", ("model.name",), "expected SECTION.FIELD=VALUE"),
        ("", ("model.nam=lstm",), "unknown name 'model.nam'; known here: name, layers"),
        ("[fields]\namount = 'ts'\n", (), "'ts' is both a field and log.time"),
        ("[fields]\namount = 'x'\nnumeric = ['x']\n", (), "'x' is declared twice"),
        ("[fields]\nnumeric = ['fraud']\n[labels]\ncolumn = 'fraud'\n", (), "'fraud' is the label"),
        ("[fields]\nnumeric = ['k']\n[labels]\ncolumn = 'fraud'\nknown_at = 'k'\n", (), "'k' is the label (or tells"),
        ("[labels]\ncolumn = 'fraud'\npath = 'l.csv'\n", (), "labels.path needs labels.key"),
        ("[labels]\ncolumn = 'fraud'\nkey = ['event_id']\n", (), "labels.path is not set"),
        (_TABLE + "level = 'session'\n", (), 'needs "session_id"'),
        ("[split]\ntrain_until = '2026-01-01T00:00:00Z'\n", (), "go together"),
        ("[split]\nfractions = [0.5, 0.2, 0.2]\n", (), "add up to 1"),
        ("[split]\nby = 'column'\n", (), "needs split.column"),
        ("[split]\nby = 'user'\nfractions = [0.5, 0.2, 0.2]\n", (), "add up to 1"),
        ("[split]\nfractions = [nan, 0.5, 0.5]\n", (), "split.fractions.0 = nan"),
        ("[labels]\ncolumn = 'fraud'\n", ("log.time=position", "log.position=pos"), 'split.by = "time" needs a clock'),
        ("", ("log.zone=Nowhere/Zone",), "log.zone = 'Nowhere/Zone'"),
        ("[policy]\ncosts = { revue = 3.0 }\n", (), "revue"),
        ("x = \n", (), "not valid TOML"),
    ],
)
def test_a_mistake_is_refused_with_its_name(text: str, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _parse(text, *overrides)
    assert words in str(caught.value)
    assert "c.toml" in str(caught.value) or words == "expected SECTION.FIELD=VALUE"


def test_a_missing_file_and_a_missing_log_section_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"section \[log\] is missing"):
        parse_config("", source="c.toml", root=tmp_path)


def test_what_is_written_is_read_back() -> None:
    config = _parse(
        '[sessions]\ngap = "90s"\n[fields]\ncategorical = ["a \\"b\\" \\u007f"]\n[policy]\ncosts = { review = 2.5 }\n'
        + _TABLE,
        "labels.delay=7d",
        "model.name=boosting",
    )
    assert parse_config(config_to_toml(config), source="c.toml", root=Path()) == config


def test_the_state_hash_follows_what_shapes_the_state_and_nothing_else() -> None:
    config = _parse("")
    assert state_hash(config) == state_hash(replace(config, log=replace(config.log, events="elsewhere.csv")))
    assert state_hash(config) == state_hash(_parse("", "model.name=boosting", "policy.alert_budget=0.2"))
    for override in ("sessions.max_events=32", "sessions.gap=1h", 'fields.entity=["p"]', "log.user=u"):
        assert state_hash(config) != state_hash(_parse("", override))
