"""A second opinion on explanations: integrated gradients of a network, from its weights, with torch, offline.

Integrated gradients (Sundararajan, Taly & Yan 2017, equation 1) walk from the embeddings of unknown events to those of
the events that were, and add up the gradient of the logit on the way. They sum to logit(all) - logit(nothing known);
event occlusion (`fraud.explain`) does not, but asks the model itself. Neither is read off attention weights.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from fraud.events import FloatArray
from fraud.models.network import Network
from fraud.runtime import TokenBatch
from fraud.tokens import UNKNOWN_ID, Vocabulary, is_of_time

N_STEPS = 64  # Gauss-Legendre points: on trained networks the sum is then exact to about 1e-3 of the logit


def unknown_tokens(tokens_TF: TokenBatch, vocabulary: Vocabulary) -> TokenBatch:
    """Return int64 [T, F]: the events of one window with all but their times unknown."""
    is_kept_F = np.array([is_of_time(field.name) for field in vocabulary.fields], dtype=np.bool_)
    return np.where(is_kept_F, tokens_TF, UNKNOWN_ID)


def integrated_gradients(
    network: Network, tokens_TF: TokenBatch, baseline_TF: TokenBatch, *, n_steps: int = N_STEPS
) -> FloatArray:
    """Return float64 [T]: what each event of one window adds to the logit of the last, against the baseline events.

    network: as it scores, in eval mode. The path runs through the embedded events; what an encoder reads of the tokens
    themselves (their times) is that of the events.
    """
    points, weights = np.polynomial.legendre.leggauss(n_steps)
    share_K = torch.as_tensor((points + 1.0) / 2.0, dtype=torch.float32)
    tokens_1TF = torch.as_tensor(tokens_TF)[None]
    with torch.no_grad():
        end_TD = network.embedding(tokens_1TF)[0]
        start_TD = network.embedding(torch.as_tensor(baseline_TF)[None])[0]
    values_KTD = (start_TD + share_K[:, None, None] * (end_TD - start_TD)).requires_grad_(True)
    logit_K = value_logits(network, values_KTD, tokens_1TF.expand(n_steps, -1, -1))
    gradients = cast(tuple[Tensor], torch.autograd.grad(logit_K.sum(), values_KTD))
    gradient_KTD = gradients[0].numpy().astype(np.float64)
    mean_TD = np.tensordot(weights / 2.0, gradient_KTD, axes=1)
    return ((end_TD - start_TD).numpy() * mean_TD).sum(axis=-1)


def value_logits(network: Network, values_KTD: Tensor, tokens_KTF: Tensor) -> Tensor:
    """Return float32 [K]: the logit of the last event of windows whose events are given as embedded [K, T, D]."""
    return network.head(network.encoder(values_KTD, tokens_KTF)[:, -1]).squeeze(-1)
