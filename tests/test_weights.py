"""What tuned params are merged with; the loop's laws of it are in test_imm.py."""

import jax.numpy as jnp
import numpy as np

from imm_jax import weights


def test_the_mean_of_all_previous_follows_its_definition():
  params = [{'w': jnp.float32([x, -x])} for x in (1.0, 4.0, 10.0)]
  anchor = params[0]
  for round_, new in enumerate(params[1:], start=1):
    anchor = weights.next_anchor('all_previous', anchor, new, round_)
  np.testing.assert_allclose(anchor['w'], [5.0, -5.0], rtol=1e-6)
  assert weights.next_anchor('previous', params[0], params[1], 1) is params[1]
  assert weights.next_anchor('base', params[0], params[1], 1) is params[0]
