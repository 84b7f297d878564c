"""The leaderboard, the pick and the words; what a line-up refuses and what data cannot say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import fraud
from fraud.comparison import Comparison, check_halves, compare_judged, limits_of, pair_words
from fraud.config import Config, parse_config
from fraud.errors import ConfigError, DataError
from fraud.judging import Judged, judge
from fraud.learning import check_periods
from fraud.lineup import fits_of, lineup_of, scorer_config
from fraud.logs import from_table
from fraud.metrics import alerts
from fraud.pairing import Difference
from fraud.preparation import Prepared, prepare
from pipelines.comparison_page import comparison_page
from pipelines.pictures import pictures

NAMES = ("boosting", "average", "fused")
CONFIG = """
[log]
events = "unused"
[fields]
amount = "amount"
[labels]
column = "fraud"
[split]
by = "column"
column = "part"
[sessions]
max_events = 8
[policy]
alert_budget = 0.05
[model]
trees = 8
width = 8
layers = 1
[training]
epochs = 1
"""


def _table(n_users: int = 300, *, seed: int = 0) -> pa.Table:
    """Return users of 6 events; a "transfer" after a "check" is mostly fraud, and large amounts are."""
    rng = np.random.default_rng(seed)
    n = n_users * 6
    codes = rng.integers(0, 3, n)
    amount = np.round(rng.lognormal(3, 1, n), 2)
    after_check = np.append(False, codes[:-1] == 0) & (codes == 1)
    fraud_N = (rng.random(n) < np.where(after_check, 0.6, np.where(amount > 80, 0.3, 0.02))).astype(int)
    return pa.table(
        {
            "user_id": [f"u{u:04d}" for u in range(n_users) for _ in range(6)],
            "ts": pa.array(1_700_000_000_000_000 + np.arange(n) * 60_000_000).cast(pa.timestamp("us", tz="UTC")),
            "type": np.array(["check", "transfer", "view"])[codes],
            "amount": amount,
            "fraud": fraud_N,
            "part": np.repeat(np.array(["train", "train", "valid", "test"])[np.arange(n_users) % 4], 6),
        }
    )


def _config(root: Path, *overrides: str) -> Config:
    return parse_config(CONFIG, source="test", root=root, overrides=overrides)


def test_the_second_of_a_pair_that_is_better_is_named_first_and_every_figure_has_its_sign() -> None:
    worse = Difference(diff=-0.3, ci=(-0.4, -0.2), by_fit=(-0.35, -0.25))
    assert pair_words("average", "fused", worse) == (
        "fused is better than average by 0.300 AP [0.200, 0.400]; by seed +0.250 to +0.350"
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Config, dict[str, list[Judged]]]:
    """Return a prepared set and two judged fits of each of NAMES on it."""
    folder = tmp_path_factory.mktemp("comparison")
    config = _config(folder)
    prepared = prepare(from_table(_table(), config), config, folder / "set", progress=lambda *_: None)
    lineup = lineup_of(NAMES, config, seeds=2)
    by_seed = [fits_of(prepared, lineup, config, nth) for nth in range(2)]
    judged = {name: [judge(fits[name], prepared, config) for fits in by_seed] for name in NAMES}
    return prepared, config, judged


def _compared(made: tuple[Prepared, Config, dict[str, list[Judged]]], n_seeds: int = 1) -> Comparison:
    prepared, config, judged = made
    return compare_judged({n: fits[:n_seeds] for n, fits in judged.items()}, prepared, config, fit_s={"boosting": 1.5})


def test_with_one_seed_an_entry_is_what_train_says_of_the_scorer(made: Any) -> None:
    comparison = _compared(made)
    for name, entry in comparison.entries.items():
        assert entry.metrics == made[2][name][0].test
    document = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert list(document["models"]) == list(NAMES)
    assert set(document["paired"]) == {"boosting|average", "boosting|fused", "average|fused"}
    assert document["models"]["boosting"]["fit_s"] == 1.5
    assert document["models"]["average"]["fit_s"] is None
    assert "ablation" not in document


def test_with_seeds_an_entry_is_the_mean_and_shows_each(made: Any) -> None:
    comparison = _compared(made, 2)
    for name, entry in comparison.entries.items():
        fits = [one.test for one in made[2][name]]
        assert entry.metrics.ap == pytest.approx(np.mean([one.ap for one in fits]))
        assert entry.metrics.alert_rate == pytest.approx(np.mean([one.alert_rate for one in fits]))
        assert entry.ap_by_seed == pytest.approx([one.ap for one in fits])
        assert entry.metrics.ap_ci is not None
        assert entry.metrics.ap_ci[0] < entry.metrics.ap < entry.metrics.ap_ci[1]
    assert len(set(comparison.entries["average"].ap_by_seed or ())) == len(made[2]["average"]) > 1


def test_the_pick_never_looks_at_the_test_period(made: Any) -> None:
    """A planted leak: test figures that say the opposite of validation change nothing."""
    prepared, config, judged = made
    picked = _compared(made).picked
    assert picked == max(NAMES, key=lambda name: judged[name][0].choice_ap)

    def with_scores(name: str, one: Judged) -> Judged:
        examples = one.test_examples
        score_N = np.where(examples.label_N == 1, 0.1, 0.9) if name == picked else examples.label_N * 0.9 + 0.05
        return replace(one, test_examples=replace(examples, score_N=score_N))

    leaked = {name: [with_scores(name, fits[0])] for name, fits in judged.items()}
    comparison = compare_judged(leaked, prepared, config, fit_s={})
    assert comparison.picked == picked
    assert all(one.is_clear for pair, one in comparison.paired.items() if picked in pair)
    other = {n: [replace(f[0], choice_ap=1.0 if n == "average" else 0.1)] for n, f in judged.items()}
    assert compare_judged(other, prepared, config, fit_s={}).picked == "average"


def test_the_delay_is_from_the_first_fraud_of_a_session_to_its_first_alert(made: Any) -> None:
    prepared, _, judged = made
    one = judged["boosting"][0]
    alerted_N = alerts(one.test_examples.score_N, None, threshold=one.policy.review_at, costs=None)
    rows = np.flatnonzero(prepared.tests_N)
    delays_s: list[float] = []
    n_sessions = 0
    for session in np.unique(prepared.session_N[rows]):
        of_session = prepared.session_N[rows] == session
        frauds_us = prepared.time_us_N[rows][of_session & (prepared.label_N[rows] == 1)]
        alerts_us = prepared.time_us_N[rows][of_session & alerted_N]
        n_sessions += len(frauds_us) > 0
        if len(frauds_us) and len(alerts_us):
            delays_s.append(max(0, alerts_us.min() - frauds_us.min()) / 1e6)
    delay = _compared(made).entries["boosting"].delay
    assert delay is not None
    assert (delay.median_s, delay.detected_share) == (np.median(delays_s), len(delays_s) / n_sessions)


def test_the_words_say_who_is_better_and_who_does_not_differ(made: Any) -> None:
    comparison = _compared(made)
    words = comparison.words()
    assert words[0] == f"validation picks {comparison.picked} (AP on the first half of its users)"
    for (a, b), one in comparison.paired.items():
        (line,) = [line for line in words if a in line and b in line]
        if not one.is_clear:
            assert f"{a} and {b} do not differ clearly: {one.diff:+.3f} AP [{one.ci[0]:.3f}" in line
        else:
            better, worse = (a, b) if one.diff > 0 else (b, a)
            assert line.startswith(f"{better} is better than {worse} by {abs(one.diff):.3f} AP [")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lstmm"], "known here: average, boosting, fused, gru, lstm, rnn, transformer"),
        (["lstm", "lstm"], "'lstm' stands twice"),
        (["fused", "lstm"], "stacks two or more other scorers"),
        ([], "expected at least one of average"),
    ],
)
def test_a_lineup_that_cannot_be_is_refused(names: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        lineup_of(names, _config(tmp_path), seeds=1)


def test_fused_stacks_the_others_or_the_members_of_the_configuration(tmp_path: Path) -> None:
    config = _config(tmp_path, 'model.members=["gru", "average"]')
    assert lineup_of(["fused", "lstm", "boosting"], config, seeds=1).members == ("lstm", "boosting")
    alone = lineup_of(["fused"], config, seeds=1)
    assert alone == (("gru", "average", "fused"), ("gru", "average"), ("gru", "average"))
    assert scorer_config(config, "fused", alone.members, 3).model.members == ("gru", "average")
    assert scorer_config(config, "fused", alone.members, 3).training.seed == config.training.seed + 3
    with pytest.raises(ConfigError, match=r"model.members = \['lstm', 'nobody'\]|no such model"):
        lineup_of(["fused"], _config(tmp_path, 'model.members=["lstm", "nobody"]'), seeds=1)
    with pytest.raises(ConfigError, match="--seeds 0"):
        lineup_of(["lstm"], config, seeds=0)


def test_a_setting_that_one_scorer_refuses_names_it_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--models transformer: model.width = 12"):
        lineup_of(["lstm", "transformer"], _config(tmp_path, "model.width=12"), seeds=1)
    lineup_of(["lstm"], _config(tmp_path, "model.width=12"), seeds=1)


def _changed(made: Any, rows: str, label: int, *, halves: Sequence[bool] = (True, True)) -> Prepared:
    """Return the prepared set with the labels of a part, or of one half of its users, all the same."""
    prepared = made[0]
    label_N = np.array(prepared.label_N)
    is_first_N = prepared.half_U[prepared.user_N] < 0.5
    label_N[getattr(prepared, rows) & ((is_first_N & halves[0]) | (~is_first_N & halves[1]))] = label
    return replace(prepared, label_N=label_N)


def test_a_test_period_without_a_fraud_has_figures_of_none_and_says_so(made: Any) -> None:
    config, judged = made[1], made[2]
    prepared = _changed(made, "tests_N", 0)
    again = {name: [judge(fits[0].fitted, prepared, config)] for name, fits in judged.items()}
    comparison = compare_judged(again, prepared, config, fit_s={})
    text = json.dumps(comparison.to_json(), allow_nan=False)
    assert json.loads(text)["models"]["boosting"]["ap"] is None
    assert comparison.paired == {}
    assert comparison.picked == _compared(made).picked
    assert "the test period holds no known fraud" in comparison.words()[-1]
    examples = {name: [one.test_examples for one in fits] for name, fits in again.items()}
    assert pictures(comparison, examples) == []
    page = comparison_page(comparison, [], prepared.report)
    assert "no known fraud" in page
    assert "nan" not in page.lower().replace("finance", "")


def test_a_choosing_half_of_one_class_picks_nothing(made: Any) -> None:
    config, judged = made[1], {name: made[2][name] for name in ("boosting", "average")}
    prepared = _changed(made, "validates_N", 0, halves=(True, False))
    again = {name: [judge(fits[0].fitted, prepared, config)] for name, fits in judged.items()}
    comparison = compare_judged(again, prepared, config, fit_s={})
    assert comparison.picked is None
    assert any("cannot choose between scorers" in line for line in comparison.limits)
    alone = compare_judged({"boosting": again["boosting"]}, prepared, config, fit_s={})
    assert alone.picked == "boosting"


@pytest.mark.parametrize(
    ("halves", "label", "names", "says"),
    [
        ((True, False), 0, ["boosting", "average", "fused"], "fused cannot weigh its members"),
        ((True, False), 1, ["boosting", "average", "fused"], "fused cannot weigh its members"),
        ((False, True), 1, ["boosting"], "would calibrate the scores is fraud"),
    ],
)
def test_a_half_of_one_class_is_refused_before_anything_is_trained(
    made: Any, halves: tuple[bool, bool], label: int, names: list[str], says: str
) -> None:
    lineup = lineup_of(names, made[1], seeds=1)
    check_halves(made[0], lineup)
    with pytest.raises(DataError, match=says):
        check_halves(_changed(made, "validates_N", label, halves=halves), lineup)


def test_a_calibrating_half_without_fraud_and_a_budget_under_one_alert_are_said(made: Any) -> None:
    prepared, config = made[0], made[1]
    assert limits_of(prepared, config) == ()
    (limit,) = limits_of(_changed(made, "validates_N", 0, halves=(False, True)), config)
    assert "all of them calibrate" in limit
    small = replace(config, policy=replace(config.policy, alert_budget=0.001, block_budget=0.0))
    (limit,) = limits_of(prepared, small)
    assert limit.startswith(
        f"policy.alert_budget = 0.001 of {int(prepared.tests_N.sum()):,} test examples is under one"
    )


@pytest.mark.parametrize(
    ("rows", "says"), [("trains_N", "training period"), ("validates_N", "what was known at its end")]
)
def test_a_period_whose_labels_are_known_too_late_is_refused(made: Any, rows: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        check_periods(_changed(made, rows, 0))


def test_the_page_is_whole_in_itself_and_escapes_what_it_shows(made: Any) -> None:
    comparison = _compared(made, 2)
    examples = {name: [one.test_examples for one in fits] for name, fits in made[2].items()}
    drawn = pictures(comparison, examples)
    assert [one.name for one in drawn] == ["precision_recall", "calibration", "differences"]
    again = pictures(comparison, examples)
    assert [(one.svg, one.png) for one in again] == [(one.svg, one.png) for one in drawn]
    evil = "<script>alert(1)</script>"
    entries = {evil if name == "average" else name: entry for name, entry in comparison.entries.items()}
    page = comparison_page(replace(comparison, entries=entries, limits=(evil,)), drawn, made[0].report)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2
    assert page.count("<svg") == len(drawn)
    assert "#010203" not in page
    assert "currentColor" in page
    assert "prefers-color-scheme: dark" in page
    # Nothing is fetched: what looks like an address is the name of a format.
    assert 'src="' not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "").replace(
        "http://purl.org/", ""
    ).replace("http://creativecommons.org/", "").replace("https://matplotlib.org/", "")


def test_a_notebook_compares_and_ablates_in_one_call(tmp_path: Path) -> None:
    config = _config(tmp_path)
    log = from_table(_table(120), config)
    comparison = fraud.compare(log, config, models=["boosting", "average", "fused"], ablate=True)
    document = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert set(document["ablation"]) == {"boosting", "average", "fused"}
    for worth in document["ablation"].values():
        assert worth["order"]["ap_diff"] == pytest.approx(worth["intact"]["ap"] - worth["order"]["ap"])
        assert worth["time"]["ci"][0] <= worth["time"]["ap_diff"] <= worth["time"]["ci"][1]
    assert sum("ORDER" in line for line in comparison.words()) == 3
    assert any("one label at their end" in line for line in comparison.limits)
