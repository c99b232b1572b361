"""What may have been meant is said, and nothing else."""

from imm_jax.text import nearest
import pytest


@pytest.mark.parametrize(
  ('word', 'hint'),
  [('alhpa', '; did you mean alpha?'), ('density_', '; did you mean density?'), ('xyz', ''), (None, ''), (7, '')],
)
def test_near_names_are_offered(word, hint):
  assert nearest(word, ['alpha', 'density']) == hint
