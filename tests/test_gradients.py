"""Integrated gradients add up, and give an event on its own what event occlusion gives it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_tensors

from fraud.enrich import empty_carry, enrich
from fraud.explain import explain
from fraud.gradients import integrated_gradients, unknown_tokens
from fraud.logs import read_log
from fraud.models.network import Network, build_network, with_weights
from fraud.scoring import Scorer, enrich_spec, risk_of
from fraud.tables import tables_of
from fraud.tokens import TokenArray, encode
from tests.trained import Trained, trained_bundles

N_WINDOWS = 25


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def network(trained: Trained) -> Network:
    scorer = trained.bundle("lstm").scorer
    weights = load_tensors((trained.folder / "lstm" / "weights.safetensors").read_bytes())
    fields = scorer.model.vocabulary.field_shapes
    untrained = build_network(fields, scorer.config.model, dropout=0.0, base_rate=0.5, seed=0)
    return with_weights(untrained, weights).eval()


@pytest.fixture(scope="module")
def windows(trained: Trained) -> tuple[Scorer, list[TokenArray]]:
    """Return the windows that end at the events of the highest logits."""
    scorer = trained.bundle("lstm").scorer
    log = read_log(trained.config)
    tables = tables_of(log, trained.config)
    events = log.partitions[0]().events
    spec = enrich_spec(scorer.config)
    before = empty_carry(events.n_users, spec)
    enriched, _ = enrich(events, before, spec)
    tokens_NF = encode(enriched, risk_of(events, tables), scorer.model.vocabulary)
    logit_N = scorer.model.logits(enriched, risk_of(events, tables))
    rows = np.sort(np.argsort(-logit_N)[:N_WINDOWS])
    explained = explain(scorer, enriched, before, tables, rows)
    places = [slice(*explained.starts_D1[d : d + 2]) for d in range(len(rows))]
    return scorer, [tokens_NF[explained.row_C[place]].astype(np.int64) for place in places]


def test_they_sum_to_the_logit_less_that_of_the_unknown(
    network: Network, windows: tuple[Scorer, list[TokenArray]]
) -> None:
    scorer, tokens = windows
    for tokens_TF in tokens:
        baseline_TF = unknown_tokens(tokens_TF, scorer.model.vocabulary)
        attribution_T = integrated_gradients(network, tokens_TF, baseline_TF)
        with torch.no_grad():
            # Times stay those of the window, so the baseline is read with the window's own tokens.
            whole, unknown = network(torch.as_tensor(np.stack([tokens_TF, baseline_TF])))[:, -1].tolist()
        assert attribution_T.sum() == pytest.approx(whole - unknown, abs=1e-3)
        assert len(attribution_T) == len(tokens_TF)


def test_the_baseline_keeps_times_and_nothing_else(
    windows: tuple[Scorer, list[TokenArray]],
) -> None:
    scorer, tokens = windows
    baseline_TF = unknown_tokens(tokens[0], scorer.model.vocabulary)
    for f, field in enumerate(scorer.model.vocabulary.fields):
        if field.name in ("gap", "hour", "since_session", "session_start") or field.name[:6] in ("since:", "pause:"):
            np.testing.assert_array_equal(baseline_TF[:, f], tokens[0][:, f])
        else:
            assert (baseline_TF[:, f] == 1).all()


def test_an_event_equal_to_its_baseline_adds_nothing(
    network: Network, windows: tuple[Scorer, list[TokenArray]]
) -> None:
    scorer, tokens = windows
    tokens_TF = max(tokens, key=len).copy()
    tokens_TF[1] = unknown_tokens(tokens_TF, scorer.model.vocabulary)[1]
    attribution_T = integrated_gradients(network, tokens_TF, unknown_tokens(tokens_TF, scorer.model.vocabulary))
    assert attribution_T[1] == 0.0
    assert np.abs(attribution_T).max() > 0.0


def test_with_one_event_unknown_they_give_it_all_that_occlusion_does(
    network: Network, windows: tuple[Scorer, list[TokenArray]]
) -> None:
    scorer, tokens = windows
    tokens_TF = max(tokens, key=len)
    unknown_TF = unknown_tokens(tokens_TF, scorer.model.vocabulary)
    for place in range(len(tokens_TF)):
        occluded_TF = tokens_TF.copy()
        occluded_TF[place] = unknown_TF[place]
        attribution_T = integrated_gradients(network, tokens_TF, occluded_TF)
        with torch.no_grad():
            whole, without = network(torch.as_tensor(np.stack([tokens_TF, occluded_TF])))[:, -1].tolist()
        assert attribution_T[place] == pytest.approx(whole - without, abs=1e-3)
        assert not np.delete(attribution_T, place).any()
