"""`fraud policy test` and `fraud policy apply`, and what a bundle with rules then decides, explains and refuses."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud.bundle import load_bundle
from fraud.config import config_to_toml, load_config
from fraud.decisions import policy_version
from fraud.errors import BundleError
from fraud.judging import train
from fraud.logs import read_log
from tests.commands import call_fraud, contents, leftovers, refused
from tests.tampered import tampered
from tests.trained import Trained, trained_bundles

_RULES = """
[[policy.lists]]
name = "known_mules"
field = "payee"
decision = "block"
path = "mules.txt"

[[policy.rules]]
name = "trusted_channel"
decision = "allow"
where = { channel = ["branch", "atm"] }

[[policy.rules]]
name = "large_first_payee"
decision = "review"
text = "large transfer to a payee new to this user"
types = ["transfer_out"]
where = { amount = { at_least = 300 }, payee = { first_seen = true } }
"""
_TESTS = """
[[policy.tests]]
name = "a [mule], whatever the score [/x]"
events = [{ type = "transfer_out", ts = 2026-03-01T10:00:00Z, amount = 5, payee = "MULE" }]
score = 0.0
expect = "block"
by = "known_mules"

[[policy.tests]]
events = [
  { type = "transfer_out", ts = "2026-03-01T10:00:00Z", amount = 20, payee = "p" },
  { type = "transfer_out", ts = "2026-03-02T10:00:00Z", amount = 900, payee = "p" },
]
by = "model"
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def mules(trained: Trained) -> list[str]:
    """Return two payees of the log."""
    payees = pq.read_table(trained.events, columns=["payee"])["payee"].drop_null()
    return sorted(set(payees.to_pylist()))[:2]


@pytest.fixture
def config_file(trained: Trained, mules: list[str], tmp_path: Path) -> Path:
    """Return the configuration of the trained bundles with rules and tests that pass."""
    (tmp_path / "mules.txt").write_text("\n".join(mules) + "\n", encoding="utf-8")
    return _written(trained, tmp_path / "config.toml", _RULES + _TESTS.replace("MULE", mules[0]))


def _written(trained: Trained, path: Path, policy: str) -> Path:
    overrides = (f"log.events={trained.events}", f"labels.path={trained.log / 'labels.parquet'}")
    text = config_to_toml(load_config(trained.config_file, overrides)) + policy
    path.write_text(text, encoding="utf-8")
    return path


def test_tests_that_pass_end_with_0_and_a_table(config_file: Path) -> None:
    ended = call_fraud("policy", "test", config_file)
    assert ended.exit_code == 0, ended.stderr
    assert "block by known_mules" in ended.stdout
    assert "2 passed, 0 failed" in ended.stderr
    document = call_fraud("policy", "test", config_file, "--json").document
    assert (document["passed"], document["failed"], document["policy_version"]) == (2, 0, None)
    assert [test["test"] for test in document["tests"]] == ["a [mule], whatever the score [/x]", "test 2"]
    assert document["tests"][0] | {"text": ""} == {
        "test": "a [mule], whatever the score [/x]", "passed": True, "decision": "block", "by": "known_mules",
        "expected": "block", "expected_by": "known_mules", "text": "",
    }  # fmt: skip
    assert (document["tests"][1]["decision"], document["tests"][1]["by"]) == (None, "model")


def test_one_that_fails_ends_with_1_and_says_what_decided(trained: Trained, config_file: Path) -> None:
    text = config_file.read_text(encoding="utf-8").replace('by = "known_mules"', 'by = "large_first_payee"')
    config_file.write_text(text, encoding="utf-8")
    ended = call_fraud("policy", "test", config_file)
    assert ended.exit_code == 1
    assert "FAIL" in ended.stdout
    assert "block by known_mules" in ended.stdout
    assert call_fraud("policy", "test", config_file, "--json").document["failed"] == 1
    out = config_file.parent / "bundle"
    refused(
        call_fraud("policy", "apply", trained.folder / "boosting", config_file, "-o", out),
        "1 of 2 policy tests fail",
    )
    assert not out.exists()


def test_no_tests_are_no_failure_but_are_told(trained: Trained, tmp_path: Path) -> None:
    ended = call_fraud("policy", "test", _written(trained, tmp_path / "config.toml", ""))
    assert ended.exit_code == 0
    assert "no [[policy.tests]]" in ended.stderr


@pytest.mark.parametrize(
    ("score", "expect", "passes"),
    [("0.0", "allow", True), ("0.9999999", "block", True), ("0.9999999", "allow", False), (None, "allow", False)],
)
def test_what_the_model_decides_needs_the_thresholds_of_a_bundle(
    trained: Trained, tmp_path: Path, score: str | None, expect: str, passes: bool
) -> None:
    line = "" if score is None else f"score = {score}\n"
    config = _written(
        trained,
        tmp_path / "config.toml",
        '[[policy.tests]]\nevents = [{ type = "withdraw", ts = 2026-03-01T10:00:00Z, amount = 5 }]\n'
        f'{line}expect = "{expect}"\n',
    )
    ended = call_fraud("policy", "test", config, "--bundle", trained.folder / "boosting")
    assert ended.exit_code == int(not passes), ended.stderr
    ended = call_fraud("policy", "test", config, "--json")
    assert ended.exit_code == 1
    assert "--bundle" in ended.document["tests"][0]["text"]


def test_a_test_may_say_what_is_known_of_an_entity_and_may_lie_outside_of_the_decisions(
    trained: Trained, tmp_path: Path
) -> None:
    config = _written(
        trained,
        tmp_path / "config.toml",
        """
[[policy.rules]]
name = "bad_payee"
decision = "block"
where = { payee = { known_frauds_28d = { at_least = 2 } } }
[[policy.tests]]
events = [{ type = "transfer_out", ts = 2026-03-01T10:00:00Z, payee = "p" }]
risk = { payee = { known_frauds_28d = 2 } }
by = "bad_payee"
[[policy.tests]]
events = [{ type = "transfer_out", ts = 2026-03-01T10:00:00Z, payee = "p" }]
by = "model"
[[policy.tests]]
events = [{ type = "login", ts = 2026-03-01T10:00:00Z }]
by = "bad_payee"
""",
    )
    tests = call_fraud("policy", "test", config, "--json").document["tests"]
    assert [test["passed"] for test in tests] == [True, True, False]
    assert (tests[2]["decision"], tests[2]["by"]) == (None, None)
    assert "[decisions]" in tests[2]["text"]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ('{ type = "login", ts = "yesterday" }', ("policy.tests.0.events.0.ts = 'yesterday'",)),
        ('{ type = "login", ts = 2026-03-01T10:00:00 }', ("policy.tests.0.events.0.ts", "zone")),
        ('{ type = "login" }', ("policy.tests.0.events.0.ts",)),
        ("{ ts = 2026-03-01T10:00:00Z }", ("policy.tests.0.events.0.type",)),
        ('{ type = "login", ts = 2026-03-01T10:00:00Z, amount = -5 }', ("events.0.amount = '-5'",)),
        ('{ type = "login", ts = 2026-03-01T10:00:00Z, amount = "five" }', ("events.0.amount = 'five'",)),
        (
            '{ user_id = "a", type = "login", ts = 2026-03-01T10:00:00Z }, '
            '{ user_id = "b", type = "login", ts = 2026-03-01T10:00:00Z }',
            ("policy.tests.0.events: 2 users",),
        ),
    ],
)
def test_events_of_a_test_obey_the_rules_of_a_log(
    trained: Trained, tmp_path: Path, events: str, words: tuple[str, ...]
) -> None:
    text = f'[[policy.tests]]\nevents = [{events}]\nby = "model"\n'
    refused(call_fraud("policy", "test", _written(trained, tmp_path / "config.toml", text)), *words)


def test_an_applied_policy_decides_in_batch_as_it_was_counted(
    trained: Trained, config_file: Path, mules: list[str], tmp_path: Path
) -> None:
    out, scores, plain = tmp_path / "bundle", tmp_path / "scores.parquet", tmp_path / "plain.parquet"
    before = contents(trained.folder / "boosting")
    ended = call_fraud("policy", "apply", trained.folder / "boosting", config_file, "-o", out, "--json")
    assert ended.exit_code == 0, ended.stderr
    bundle = load_bundle(out)
    assert ended.document == {
        "bundle": str(out), "version": bundle.version, "before": trained.bundle("boosting").version,
        "policy_version": policy_version(bundle.scorer.policy), "lists": 1, "rules": 2,
    }  # fmt: skip
    assert ended.document["version"] != ended.document["before"]
    assert bundle.manifest.state_hash == trained.bundle("boosting").manifest.state_hash
    assert bundle.scorer.policy.lists[0].values == set(mules)
    changed = {name for name, content in contents(out).items() if before[name] != content}
    assert changed == {"policy.toml", "config.toml", "manifest.json"}

    for directory, path in ((out, scores), (trained.folder / "boosting", plain)):
        options = ("--per-event", "--config", trained.config_file)
        assert call_fraud("score", directory, trained.events, "-o", path, *options).exit_code == 0
    table, old = pq.read_table(scores), pq.read_table(plain)
    assert table.drop_columns("decision").equals(old.drop_columns("decision"))
    log = pq.read_table(trained.events)
    log = log.take(pc.index_in(table["event_id"].combine_chunks(), value_set=log["event_id"].combine_chunks()))
    is_mule = np.isin(log["payee"].to_numpy().astype(str), mules)
    is_decision = table["decision"].is_valid().to_numpy()
    decision = table["decision"].to_numpy()
    is_trusted = np.isin(log["channel"].to_numpy().astype(str), ["branch", "atm"]) & ~is_mule & is_decision
    assert set(decision[is_mule & is_decision]) == {"block"}
    assert set(decision[is_trusted]) == {"allow"}

    counted = call_fraud(
        "policy", "test", config_file, trained.events, "--bundle", trained.folder / "boosting", "--json"
    )
    assert counted.exit_code == 0, counted.stderr
    document = counted.document["log"]
    assert (document["rows_in"], document["decision_events"]) == (len(log), int(is_decision.sum()))
    assert [row["name"] for row in document["decided_by"]] == ["known_mules", "trusted_channel", "large_first_payee"]
    assert [row["events"] for row in document["decided_by"][:2]] == [(is_mule & is_decision).sum(), is_trusted.sum()]
    assert sum(row["events"] for row in document["decided_by"]) + document["model"] == document["decision_events"]
    assert document["alert_rate"] == pytest.approx(np.isin(decision[is_decision], ["review", "block"]).mean())
    alone = call_fraud("policy", "test", config_file, trained.events, "--json").document["log"]
    same = ("decided_by", "model", "rules_alert_rate", "decision_events")
    assert {name: alone[name] for name in same} == {name: document[name] for name in same}
    assert alone["alert_rate"] is None
    shown = call_fraud("policy", "test", config_file, trained.events)
    assert "policy.alert_budget = 0.01" in shown.stderr
    assert "known_mules" in shown.stdout
    assert not leftovers(tmp_path)


def test_the_rule_that_decided_is_the_first_reason(trained: Trained, config_file: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "bundle", tmp_path / "scores.parquet"
    assert call_fraud("policy", "apply", trained.folder / "boosting", config_file, "-o", out).exit_code == 0
    assert call_fraud("score", out, trained.events, "-o", scores, "--per-event", "--explain").exit_code == 0
    rows = [row for row in pq.read_table(scores).to_pylist() if row["reasons"] is not None]
    told = [row for row in rows if row["reasons"].startswith("rule ")]
    assert any(row["reasons"].startswith("rule known_mules: payee is listed") for row in told)
    text = "rule large_first_payee: large transfer to a payee new to this user"
    shown = next(row for row in told if row["reasons"].startswith(text))
    assert len(told) < len(rows)
    command = ("explain", out, trained.events, "--user", shown["user_id"], "--event", shown["event_id"], "--json")
    (explained,) = call_fraud(*command).document["explained"]
    assert explained["reasons"][0] | {"event_index": 0} == {
        "code": "rule", "text": text, "event_index": 0, "contribution": 0.0
    }  # fmt: skip
    assert "; ".join(reason["text"] for reason in explained["reasons"]) == shown["reasons"]


def test_training_puts_the_rules_into_the_bundle(trained: Trained, config_file: Path, mules: list[str]) -> None:
    config = load_config(config_file, ("model.name=boosting", "model.trees=5"))
    with closing(read_log(config)) as log:
        bundle = train(log, config, config_file.parent / "made")
    (config_file.parent / "mules.txt").unlink()
    again = load_bundle(bundle.path)
    assert again.scorer.policy.lists[0].values == set(mules)
    assert [rule.name for rule in again.scorer.policy.rules] == ["trusted_channel", "large_first_payee"]
    assert again.scorer.config.policy.tests == config.policy.tests


def test_a_rule_that_the_events_cannot_answer_refuses_the_bundle(trained: Trained, tmp_path: Path) -> None:
    text = (trained.folder / "boosting" / "policy.toml").read_text(encoding="utf-8")
    rule = '[[rules]]\nname = "r"\ndecision = "block"\nwhere = { iban = ["x"] }\n'
    copy = tampered(trained.folder / "boosting", tmp_path, {"policy.toml": f"{text}\n{rule}".encode()})
    with pytest.raises(BundleError, match=r"policy\.toml: unknown name 'rules\.0 \(r\)\.where\.iban'"):
        load_bundle(copy)


def test_a_bundle_of_another_log_or_other_decisions_is_refused(
    trained: Trained, config_file: Path, tmp_path: Path
) -> None:
    bundle = trained.folder / "boosting"
    other = ("policy", "test", config_file, "--bundle", bundle, "--set")
    refused(call_fraud(*other, "sessions.gap=1h"), "another [log], [fields] or [sessions]")
    refused(call_fraud(*other, "decisions.min_events=2"), "[decisions] is not that of the bundle")
    out = tmp_path / "out"
    assert call_fraud("policy", "apply", bundle, config_file, "-o", out).exit_code == 0
    refused(call_fraud("policy", "apply", bundle, config_file, "-o", out), "exists; --overwrite replaces it")
    assert call_fraud("policy", "apply", out, config_file, "-o", out, "--overwrite").exit_code == 0
    refused(call_fraud("policy", "apply", bundle, config_file, "-o", bundle.parent, "--overwrite"), "holds no manifest")
