"""Packing loses no token, mixes no sequences, and targets completions only."""

from imm_jax.training import packing
import numpy as np
import pytest

PAIRS = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9]), ([10, 11], [12]), ([13], [14])]


def unpack(batch):
  """Returns (inputs, targets that are learned) of every segment."""
  found = []
  for row in range(batch.tokens.shape[0]):
    for segment in range(1, batch.segment_ids[row].max() + 1):
      own = batch.segment_ids[row] == segment
      assert list(batch.positions[row][own]) == list(range(own.sum()))
      found.append((list(batch.tokens[row][own]), list(batch.targets[row][own & batch.loss_mask[row]])))
  return sorted(found)


@pytest.mark.parametrize('max_length', [4, 7, 64])
def test_every_sequence_is_found_again(max_length):
  batch = packing.pack(PAIRS, max_length)
  assert batch.tokens.shape[1] == max_length
  assert unpack(batch) == sorted(([*p, *c][:-1], c) for p, c in PAIRS)
  assert not batch.loss_mask[batch.segment_ids == 0].any()


def test_rows_are_filled_before_new_ones_are_opened():
  assert packing.pack(PAIRS, 7).tokens.shape[0] == 2
  assert packing.pack(PAIRS, 64).tokens.shape[0] == 1


def test_a_sequence_goes_where_it_fits_best():
  pairs = [([1] * n, [2]) for n in (6, 3, 5, 2, 4)]
  batch = packing.pack(pairs, 10)
  lengths = sorted(sorted(np.bincount(row)[1:].tolist()) for row in batch.segment_ids)
  assert lengths == [[2, 3, 5], [4, 6]]


def test_the_target_is_the_next_token():
  batch = packing.pack([([1, 2], [3, 4])], 8)
  np.testing.assert_array_equal(batch.targets[0, :3], [2, 3, 4])
  np.testing.assert_array_equal(batch.loss_mask[0, :4], [False, True, True, False])


def test_a_sequence_that_does_not_fit_is_an_error():
  with pytest.raises(ValueError, match='sequence 0 has 4 tokens and a row holds 3: raise finetune.max_length'):
    packing.pack(PAIRS, 3)


def test_nothing_to_learn_is_an_error():
  with pytest.raises(ValueError, match='no token to learn'):
    packing.pack([([1, 2], [])], 8)
