"""A key-value cache with room to grow: transformers' own is copied at every token, and when a row ends."""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (rows, heads, tokens, size): views of tensors for more tokens."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room  # in tokens

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write the next tokens' keys and values, and return all of them."""
        rows, heads, count, size = key_states.shape
        before = self.get_seq_length()
        if not before:
            self.all = key_states.new_empty(2, rows, heads, self.room, size)
            self.is_initialized = True
        self.keys, self.values = self.all[:, :rows, :, : before + count]
        self.keys[:, :, before:], self.values[:, :, before:] = key_states, value_states
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in `in_place`'s order: only those that change their place are copied."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        self.all[:, moved] = self.all[:, indices[moved]]
        self.keys, self.values = self.all[:, : len(indices), :, : self.get_seq_length()]


def in_place(kept: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the rows kept so that most stay where they are, the last ones filling gaps."""
    order = torch.arange(len(kept), device=kept.device)
    order[~torch.isin(order, kept)] = kept[kept >= len(kept)]
    return order
