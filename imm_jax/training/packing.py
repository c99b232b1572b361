"""Packs token sequences into rows of fixed shape; each sequence sees only itself."""

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Batch(NamedTuple):
  """Packed rows; every field is [..., T], a NumPy array on the host and a jax.Array in a step."""

  tokens: Any  # int32.
  targets: Any  # int32, the token that follows.
  loss_mask: Any  # bool, True where the target belongs to a completion.
  segment_ids: Any  # int32, 1.. in a row; 0 is padding.
  positions: Any  # int32, from 0 in each segment.


def num_slots(prompt: Sequence[int], completion: Sequence[int]) -> int:
  """Returns the length that a pair takes in a row: its last token is only a target."""
  return len(prompt) + len(completion) - 1


def pack(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int) -> Batch:
  """Returns rows [N, max_length] that hold all (prompt, completion) pairs.

  The pairs are packed by best fit, the longest first. Only the completion's tokens are targets.
  Raises ValueError when a pair does not fit a row, or nothing is a target.
  """
  needs = [num_slots(prompt, completion) for prompt, completion in pairs]
  rows: list[list[int]] = []
  room: list[tuple[int, int]] = []  # (free slots, row), in order
  for i in sorted(range(len(pairs)), key=lambda i: -needs[i]):
    if needs[i] > max_length:
      raise ValueError(
        f'sequence {i} has {needs[i]} tokens and a row holds {max_length}: raise'
        ' finetune.max_length'
      )
    place = bisect.bisect_left(room, (needs[i], 0))  # the fullest row with room for it
    free, row = room.pop(place) if place < len(room) else (max_length, len(rows))
    if row == len(rows):
      rows.append([])
    rows[row].append(i)
    bisect.insort(room, (free - needs[i], row))

  batch = Batch(
    *(
      np.zeros((len(rows), max_length), dtype)
      for dtype in (np.int32, np.int32, bool, np.int32, np.int32)
    )
  )
  for r, row in enumerate(rows):
    start = 0
    for segment, i in enumerate(row, start=1):
      prompt, completion = pairs[i]
      tokens, end = [*prompt, *completion], start + needs[i]
      batch.tokens[r, start:end] = tokens[:-1]
      batch.targets[r, start:end] = tokens[1:]
      batch.loss_mask[r, end - len(completion) : end] = True
      batch.segment_ids[r, start:end] = segment
      batch.positions[r, start:end] = np.arange(end - start)
      start = end
  if not batch.loss_mask.any():
    raise ValueError('no token to learn: every completion is empty')
  return batch
