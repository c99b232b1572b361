"""Answers that are texts."""

import pytest
from tests.verifying.judging import BOTH, LENIENT, NEITHER, verdicts


@pytest.mark.parametrize(
  ('gold', 'completion', 'expected'),
  [
    ('yes', 'Whales swim.\nThe answer is yes.', BOTH),
    ('yes', 'yes', BOTH),
    ('yes', ' yes.', BOTH),
    ('yes', '**yes**', BOTH),
    ('yes', 'Yes', BOTH),
    ('yes', 'Whales swim, so yes', LENIENT),
    ('yes', 'the answer is: Yes!', LENIENT),
    ('yes', 'yes and no', NEITHER),
    ('yes', 'The answer is yes. Whales swim.', BOTH),
    ('yes', 'The answer is yes; no', NEITHER),
    ('yes', 'The answer is yes, as well as no', NEITHER),
    ('yes', 'The answer is yes, as whales swim', BOTH),
    ('cat', 'The answer is cat for dog', NEITHER),
    ('__init__', 'init', NEITHER),
    ('__init__', 'The answer is __init__.', BOTH),
    ('caf\N{LATIN SMALL LETTER E WITH ACUTE}', 'cafe\N{COMBINING ACUTE ACCENT}', BOTH),
    ('yes', 'no. yes.\nthe answer is no.', NEITHER),
    ('yes', '', NEITHER),
    ('(A)', '(A)', BOTH),
    ('(A)', r'\boxed{(A)}', BOTH),
    ('(A)', 'A', LENIENT),
    ('(A)', '(B)', NEITHER),
    ('] ]', ' ]  ]', BOTH),
    ('] ]', '] ] ]', NEITHER),
  ],
)
def test_exact_verifier(gold, completion, expected):
  assert verdicts('bbh', gold, completion) == expected
