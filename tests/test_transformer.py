"""What the Transformer has beside the contract of every network: attention, positions by index and time, pooling."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fraud.config import ModelConfig
from fraud.errors import ConfigError
from fraud.models.network import Network, build_network, export_network, weights_of
from fraud.models.rotary import rotary
from fraud.models.transformer import Block, Neighbours, TransformerEncoder
from fraud.runtime import WindowModel
from fraud.tokens import FIRST_ID, FieldShape, half_octave

_N_GAPS = 77
_CLOCK = (FieldShape("type", 9, False), FieldShape("gap", _N_GAPS, True), FieldShape("hour", 27, False))
_NO_CLOCK = (_CLOCK[0], _CLOCK[2])
_MODEL = ModelConfig(name="transformer", layers=2, width=24, heads=4)
_GAP = 1


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def strong_network(fields: tuple[FieldShape, ...] = _CLOCK, model: ModelConfig = _MODEL) -> Network:
    """Return a network whose attention is far from even, as a trained one's is."""
    network = build_network(fields, model, dropout=0.0, base_rate=0.1, seed=0).eval()
    with torch.no_grad():
        for block in encoder_of(network).blocks:
            cast(Block, block).attention.projection.weight.mul_(4.0)
        network.head.weight.mul_(10.0)
    return network


def encoder_of(network: Network) -> TransformerEncoder:
    assert isinstance(network.encoder, TransformerEncoder)
    return network.encoder


def tokens(
    n_windows: int, n_events: int, fields: tuple[FieldShape, ...] = _CLOCK, *, longest_gap: int = 40
) -> npt.NDArray[np.int64]:
    """Return tokens of every id but padding; gaps up to that of the id given (40: about two weeks)."""
    rng = np.random.default_rng(3)
    sizes = [longest_gap if field.name == "gap" else field.size for field in fields]
    return np.stack([rng.integers(1, size, (n_windows, n_events)) for size in sizes], axis=-1)


def logits(network: Network, tokens_BTF: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return network(torch.as_tensor(tokens_BTF)).numpy()


class Seen:
    """The queries, keys and values of the first block of a network, and the turns and mask it is given."""

    def __init__(self, network: Network, tokens_BTF: npt.NDArray[np.int64]) -> None:
        encoder, ids_BTF = encoder_of(network), torch.as_tensor(tokens_BTF)
        self.block = cast(Block, encoder.blocks[0])
        with torch.inference_mode():
            self.turns, self.mask = encoder.turns(ids_BTF), encoder.mask(ids_BTF)
            values_BTD = encoder.neighbours(network.embedding(ids_BTF))
            self.normalised_BTD = self.block.attention_norm(values_BTD)
            self.queries, self.keys, self.values = self.of(self.turns)

    def of(self, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.block.attention.queries_keys_values(self.normalised_BTD, turns)

    def weights(self, turns: Tensor) -> Tensor:
        with torch.inference_mode():
            queries, keys, _ = self.of(turns)
            return self.block.attention.weights(queries, keys, self.mask)


# Attention


def test_the_weights_of_an_event_sum_to_one_and_none_lies_on_a_later_event() -> None:
    network, tokens_BTF = strong_network(), tokens(4, 30)
    seen = Seen(network, tokens_BTF)
    weight_BHTT = seen.weights(seen.turns)
    torch.testing.assert_close(weight_BHTT.sum(-1), torch.ones(4, 4, 30))
    assert (weight_BHTT.triu(1) == 0.0).all()
    assert weight_BHTT[:, :, 20].max() > 0.5  # and it is no plain mean


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_that_of_pytorch(causal: bool) -> None:
    network = strong_network(model=replace(_MODEL, causal=causal))
    tokens_BTF = tokens(4, 30)
    tokens_BTF[0, 20:] = 0
    seen = Seen(network, tokens_BTF)
    with torch.inference_mode():
        found_BTD = seen.block.attention(seen.normalised_BTD, seen.turns, seen.mask)
        mixed_BHTC = functional.scaled_dot_product_attention(
            seen.queries,
            seen.keys,
            seen.values,
            attn_mask=None if causal else torch.as_tensor(tokens_BTF[:, None, None, :, 0] != 0),
            is_causal=causal,
        )
        expected_BTD = seen.block.attention.output(mixed_BHTC.transpose(1, 2).flatten(2))
    assert expected_BTD.std() > 0.05
    torch.testing.assert_close(found_BTD, expected_BTD, atol=1e-5, rtol=0)


def test_a_head_of_half_a_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.heads = 5: a width of 24"):
        build_network(_CLOCK, replace(_MODEL, heads=5), dropout=0.0, base_rate=0.1, seed=0)


# Positions


def test_a_query_turned_by_its_position_is_the_rotation_of_the_paper() -> None:
    seen = Seen(strong_network(_NO_CLOCK), tokens(2, 12, _NO_CLOCK))
    with torch.inference_mode():
        plain, _, _ = seen.of(torch.ones_like(seen.turns))
    period_HP = rotary(_NO_CLOCK, width=24, heads=4).index_period_HI
    for head in range(4):
        for pair in range(3):
            angle_T = 2 * np.pi * np.arange(12) / period_HP[head, pair]
            a_BT, b_BT = (plain[:, head, :, 2 * pair + n].numpy() for n in (0, 1))
            turned = (a_BT * np.cos(angle_T) - b_BT * np.sin(angle_T), a_BT * np.sin(angle_T) + b_BT * np.cos(angle_T))
            for n in (0, 1):
                np.testing.assert_allclose(seen.queries[:, head, :, 2 * pair + n].numpy(), turned[n], atol=1e-5, rtol=0)


def test_only_the_distance_of_two_events_counts_not_where_they_stand() -> None:
    network, tokens_BTF = strong_network(), tokens(4, 30)
    seen = Seen(network, tokens_BTF)
    # Seven events and two years earlier or later, all of them.
    before_B7F = np.ones((4, 7, 3), dtype=np.int64)
    before_B7F[:, 0, _GAP] = 60
    longer = encoder_of(network).turns(torch.as_tensor(np.concatenate([before_B7F, tokens_BTF], axis=1)))
    torch.testing.assert_close(seen.weights(longer[:, 7:]), seen.weights(seen.turns), atol=1e-4, rtol=0)
    assert (seen.weights(torch.ones_like(seen.turns)) - seen.weights(seen.turns)).abs().max() > 0.1


def test_the_time_before_the_first_event_changes_nothing_and_that_between_events_does() -> None:
    encoder = encoder_of(strong_network())
    ids_BTF = torch.as_tensor(tokens(4, 30))
    values_BTD = torch.randn(4, 30, 24, generator=torch.Generator().manual_seed(0))
    first, later = ids_BTF.clone(), ids_BTF.clone()
    first[:, 0, _GAP], later[:, 15, _GAP] = 44, 44  # some two months
    with torch.inference_mode():
        hidden, of_first, of_later = (encoder(values_BTD, ids) for ids in (ids_BTF, first, later))
    torch.testing.assert_close(of_first, hidden, atol=1e-4, rtol=0)
    torch.testing.assert_close(of_later[:, :15], hidden[:, :15], atol=1e-5, rtol=0)
    assert (of_later[:, 15:] - hidden[:, 15:]).abs().max() > 0.05


def test_time_is_read_from_the_field_named_gap_and_nowhere_else() -> None:
    values_BTD = torch.randn(4, 30, 24, generator=torch.Generator().manual_seed(0))
    ids_BTF = torch.as_tensor(tokens(4, 30))
    others = ids_BTF.clone()
    others[:, :, [0, 2]] = others[:, :, [0, 2]].roll(5, dims=0) % 8 + 1
    encoder = encoder_of(strong_network())
    without = encoder_of(strong_network(tuple(field._replace(name=f"not_{field.name}") for field in _CLOCK)))
    gaps = ids_BTF.clone()
    gaps[:, :, _GAP] = 5
    with torch.inference_mode():
        assert torch.equal(encoder(values_BTD, others), encoder(values_BTD, ids_BTF))
        assert torch.equal(without(values_BTD, gaps), without(values_BTD, ids_BTF))
        assert not torch.equal(encoder(values_BTD, gaps), encoder(values_BTD, ids_BTF))


def test_the_time_of_each_gap_falls_into_its_own_bucket() -> None:
    tenths = rotary(_CLOCK, width=24, heads=4).tenths_of_id
    assert (tenths[:FIRST_ID] == 0).all()
    ids = half_octave((tenths[FIRST_ID:] * 10**5).astype(np.int64))
    # Below half a second a bucket may hold no whole tenth.
    np.testing.assert_array_equal(ids[4:], np.arange(FIRST_ID + 4, _N_GAPS))
    assert (np.abs(ids[:4] - np.arange(FIRST_ID, FIRST_ID + 4)) <= 1).all()


# Neighbours


@pytest.mark.parametrize("n_events", [1, 2, 3, 4, 9])
def test_neighbours_are_a_causal_depthwise_convolution_and_so_are_their_gradients(n_events: int) -> None:
    torch.manual_seed(0)
    neighbours = Neighbours(6)
    values_BTD = torch.randn(3, n_events, 6, requires_grad=True)
    kernel_D1K = nn.Parameter(neighbours.weight_KD.detach().flip(0).T[:, None].clone())
    others_BTD = values_BTD.detach().clone().requires_grad_()
    n_before = len(neighbours.weight_KD) - 1
    padded_BDT = functional.pad(others_BTD.transpose(1, 2), (n_before, 0))
    expected_BTD = functional.conv1d(padded_BDT, kernel_D1K, groups=6).transpose(1, 2)
    found_BTD = neighbours(values_BTD)
    torch.testing.assert_close(found_BTD, expected_BTD)
    weight_BTD = torch.randn(3, n_events, 6)
    (found_BTD * weight_BTD).sum().backward()
    (expected_BTD * weight_BTD).sum().backward()
    torch.testing.assert_close(values_BTD.grad, others_BTD.grad)
    assert kernel_D1K.grad is not None
    torch.testing.assert_close(neighbours.weight_KD.grad, kernel_D1K.grad[:, 0].T.flip(0))


# Export


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_windows", "n_events"), [(1, 1), (3, 2), (24, 64), (2, 200)])
def test_the_exported_window_reads_the_same_times_as_torch(causal: bool, n_windows: int, n_events: int) -> None:
    model = replace(_MODEL, causal=causal)
    network = strong_network(model=model)
    exported = WindowModel(export_network(weights_of(network), _CLOCK, model)["window.onnx"])
    for longest_gap in (40, _N_GAPS):  # the longest: gaps of centuries
        tokens_BTF = tokens(n_windows, n_events, longest_gap=longest_gap)
        tokens_BTF[0, n_events // 2 + 1 :] = 0
        np.testing.assert_allclose(exported.logits(tokens_BTF), logits(network, tokens_BTF), atol=1e-5, rtol=0)


# Pooling


def test_every_position_of_a_whole_window_holds_the_mean_of_its_real_events() -> None:
    network = strong_network(model=replace(_MODEL, causal=False))
    encoder = encoder_of(network)
    tokens_BTF = tokens(4, 30)
    tokens_BTF[0, 20:] = 0
    tokens_BTF[1, 1:] = 0
    ids_BTF = torch.as_tensor(tokens_BTF)
    with torch.inference_mode():
        values_BTD = encoder.neighbours(network.embedding(ids_BTF))
        for block in encoder.blocks:
            values_BTD = block(values_BTD, encoder.turns(ids_BTF), encoder.mask(ids_BTF))
        hidden_BTD, found_BTD = encoder.norm(values_BTD), network.hidden(ids_BTF)
    assert hidden_BTD[0, :20].std(0).max() > 0.1
    for window, n_real in ((0, 20), (1, 1), (2, 30)):
        expected_D = hidden_BTD[window, :n_real].mean(0)
        torch.testing.assert_close(found_BTD[window], expected_D.expand(30, -1), atol=1e-5, rtol=0)
    logit_BT = logits(network, tokens_BTF)
    assert (logit_BT == logit_BT[:, :1]).all()


def test_an_event_of_a_whole_window_sees_later_ones() -> None:
    network = strong_network(model=replace(_MODEL, causal=False))
    tokens_BTF = tokens(4, 30)
    seen = Seen(network, tokens_BTF)
    assert (seen.weights(seen.turns)[:, :, 3, 4:].sum(-1) > 0.0).all()
