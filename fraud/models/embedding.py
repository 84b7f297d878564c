"""One event is one position: the normalised sum of the embeddings of its fields (DESIGN 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class EventEmbedding(nn.Module):
    """tokens [..., F] -> [..., D]: the sum over the fields of a row of one table, divided by sqrt(F).

    All fields share one table; the rows of field f start at the sum of the sizes before it. Rows of id 0 are zero and
    stay zero: padding only stands right of the last event, where no loss and so no gradient reaches it.
    """

    offsets_F: Tensor

    def __init__(self, field_sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        sizes_F = torch.tensor(field_sizes, dtype=torch.int64)
        # Not stored with the weights: it follows from field_sizes, which the vocabulary holds.
        self.register_buffer("offsets_F", torch.cumsum(sizes_F, 0) - sizes_F, persistent=False)
        table_VD = torch.randn(int(sizes_F.sum()), width)
        table_VD[self.offsets_F] = 0.0
        self.table = nn.Parameter(table_VD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return float32 [..., D] of int64 tokens [..., F]; unit variance at the start whatever F is."""
        rows_NF = (tokens + self.offsets_F).flatten(0, -2)
        # embedding_bag sums without writing [N, F, D]: a third of gather-and-sum at D = 128, forward and backward.
        summed_ND = functional.embedding_bag(rows_NF, self.table, mode="sum")
        return summed_ND.view(*tokens.shape[:-1], -1) * tokens.shape[-1] ** -0.5
