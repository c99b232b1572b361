"""Letters of options: one, however it is dressed."""

from imm_jax.verifying import choice
import pytest
from tests.verifying.judging import BOTH, LENIENT, NEITHER, verdicts


@pytest.mark.parametrize(
  ('completion', 'expected'),
  [
    ('B', BOTH),
    (' (B)', BOTH),
    ('B) 8 km', BOTH),
    ('**B**', BOTH),
    ('So 8.\nThe answer is B.', BOTH),
    ('the answer is (B) 8 km', BOTH),
    (r'\boxed{B}', BOTH),
    ('8 km', LENIENT),
    ('the answer is 8 km.', LENIENT),
    ('I think that it is B', LENIENT),
    ('it is (B), since A is wrong', LENIENT),
    ('A', NEITHER),
    ('A B', LENIENT),
    ('A dog', NEITHER),
    ('But it is 9', NEITHER),
    ('the answer is C, not B', NEITHER),
    ('the answer is B - 7 km', NEITHER),
    ('B - 7 km', NEITHER),
    ('B. 8 km, since it is far', BOTH),
    ('B. Smith said so', LENIENT),
    ('not B', NEITHER),
    ('It must be anything but B', NEITHER),
    ('b', NEITHER),
    ('', NEITHER),
  ],
)
def test_choice_verifier(completion, expected):
  assert verdicts('aqua', 'B', completion, options=('7 km', '8 km', '9 km')) == expected


LETTERS = [
  ('The answer is A because the car moves.', 'A'),
  ('The answer is A; B is wrong.', 'A'),
  ('The answer is option A.', 'A'),
  ('The answer is $A$.', 'A'),
  ('\\boxed{\\text{A}}', 'A'),
  ('The answer is “A”.', 'A'),
  ('The answer is A, B or C.', ''),
  ('A, B or C', ''),
  ('The correct option is C.', 'C'),
  ('The answer is not A.', ''),
  ('The answer is either A or B', ''),
  ('The answer is A and B', ''),
  ('The answer is A (the car)', 'A'),
  ('P(A or B) is 0.2\nA', 'A'),
  ('The answer is A?', ''),
  ('The answer is A dog', ''),
  ('The answer is I', 'I'),
  ('\\boxed{\\textbf{(A) } 12}', 'A'),
  ('The answer is A.\n\nQuestion: Why?\nAnswer: B', 'A'),
  ('So it is 5.\nAnswer D', 'D'),
  ('So it is 5.\nHence (A) is the correct answer', 'A'),
  ("The answer isn't A", ''),
  ('I do not think the answer is A', ''),
  ('The answer is (A) (B)', ''),
  ('The answer is A, possibly B', ''),
  ('The answer is (A) the car or (B) the tree', ''),
  ('The answer is A as well as B', ''),
  ('The answer is A, since B is a tree', 'A'),
  ('The answer is A and not B', 'A'),
  ('A) the car\nB) the tree\nC) the stone', ''),
  ('A) is wrong because it moves.\nB) is right.', ''),
  ('A: incorrect', ''),
  ('A\nB is wrong.', 'A'),
  ('A\n\nExplanation: cars move. B is a tree.', 'A'),
  ('The answer is A. No, B.', ''),
  ('The answer is A. Actually, it is B.', ''),
  ('The answer is vitamin A', ''),
  ('The answer is perhaps A', ''),
  ('The answer is clearly option A', 'A'),
  ('A is right because it moves', 'A'),
  ('#### Option A', 'A'),
  ('The answer is A!', 'A'),
]


@pytest.mark.parametrize(('text', 'letter'), LETTERS)
def test_stated_letters(text, letter):
  assert choice.read(text) == letter


@pytest.mark.parametrize('letter', 'ABC')
@pytest.mark.parametrize('text', ['So {}', 'it is ({}), since 9 is odd', '{} dog', '{} it is', 'Maybe {}.'])
def test_flexible_accuracy_does_not_depend_on_the_letter(letter, text):
  expected = text not in ('{} dog', '{} it is')
  assert choice.verify_flexible(letter, ('7 km', '8 km', '9 km'), text.format(letter)) == expected
