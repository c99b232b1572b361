"""Formulas: equal both ways or not."""

from imm_jax.verifying import worker
import pytest
from tests.verifying.judging import BOTH, LENIENT, NEITHER, verdicts


@pytest.mark.parametrize(
  ('gold', 'completion', 'expected'),
  [
    (r'\frac{1}{2}', r'\boxed{\frac{1}{2}}', BOTH),
    (r'\frac{1}{2}', r'So it is $\boxed{0.5}$.', BOTH),
    (r'\frac{1}{2}', r'\boxed{\dfrac12}', BOTH),
    (r'\frac{1}{2}', 'The answer is $1/2$.', BOTH),
    (r'\frac{1}{2}', r'\boxed{\frac{1}{3}}', NEITHER),
    (r'\frac{1}{2}', 'so we have $x = 0.5$ here', LENIENT),
    (r'\left( 3, \frac{\pi}{2} \right)', r'\boxed{(3, \frac{\pi}{2})}', BOTH),
    (r'\left( 3, \frac{\pi}{2} \right)', r'\boxed{(\frac{\pi}{2}, 3)}', NEITHER),
    ('x^2+2x+1', r'\boxed{(x+1)^2}', BOTH),
    ('x^2+2x+1', r'\boxed{(x+2)^2}', NEITHER),
    (r'\text{even}', r'\boxed{\text{even}}', BOTH),
    (r'\text{even}', 'The answer is even.', BOTH),
    (r'10\%', r'\boxed{10\%}', BOTH),
    ('11', '11', BOTH),
    ('11', '', NEITHER),
    ('11', '12', NEITHER),
  ],
)
def test_math_verifier(gold, completion, expected):
  assert verdicts('math', gold, completion) == expected


def test_a_formula_that_hangs_is_an_error_and_the_next_has_its_verdict(monkeypatch):
  with monkeypatch.context() as short:
    short.setattr(worker, 'SECS', 0.5)
    assert worker.same_formula('42', '{' * 900) == 'error'
  assert worker.same_formula(r'\frac{1}{2}', '0.5') == 'correct'


@pytest.mark.parametrize(
  'gold, answer, equal',
  [
    (r'\frac{1}{2^{90}}', r'\boxed{\frac{1}{2^{80}}}', False), ('0.0000002', r'\boxed{0.0000004}', False),
    ('73', 'The answer is **73**.', True), ('73', 'The final answer is $73$. I hope it is correct.', True),
    ('31/4', 'The answer is 3 1/4.', False),
    ('3', 'The answer is $3$ or 4.', False), ('3', 'The answer is at most $3$', False), ('3', 'The answer is -$3$', False),
    ('x^2', 'The answer is 2$x^2$', False), ('x^2', 'The answer is $x^2$ + 1', False),
    ('x^2', 'It is either $x^2$ or 0', False),
    ('x^2', 'The answer is the value $x^2$, since $x > 0$.', True), ('3', 'The answer is $3$ apples', True),
    ('12', r'\boxed{1\ 2}', False), ('12', r'\boxed{1\text{ }2}', False), ('12500', r'\boxed{12\,500}', True),
    ('5', r'\boxed{5!}', False), ('n!', r'\boxed{n!}', True), ('120', r'\boxed{5!}', True),
    ('5', 'The answer is $5!$', False),
    ('2', r'\boxed{x=1 \text{ or } x=2}', False), ('(1,2)', r'\boxed{x=1 \text{ or } x=2}', False),
    ('2,400', r'\boxed{2\text{ and }400}', False), ('1,2', r'\boxed{1 \text{ and } 2}', True),
    ('(12,500)', r'\boxed{12500}', False), ('12500', r'\boxed{(12,500)}', False), ('12500', r'\boxed{12,\!500}', True),
    (r'\{1,2\}', r'\boxed{(1,2)}', False), (r'\{1,2\}', r'\boxed{1,2}', True), ('101_2', r'\boxed{101_3}', False),
    ('101', r'\boxed{101_2}', False), ('101_2', r'\boxed{101_{2}}', True), (r'5\text{ km}', r'\boxed{5\text{ cm}}', False),
    (r'5\text{ hours}', r'\boxed{5\text{ h}}', True), (r'\$5', r'\boxed{5\text{ cents}}', False),
    ('5', r'\boxed{5\text{ cm}}', True), ('20', r'\boxed{\text{June 20}}', False), ('3', 'We have 3 of them', False),
    ('3', 'Let $x = 3$. Then we compute $x+1$.', False), ('x+1', '$x+1$', True),
    (r'\emptyset', r'\boxed{\varnothing}', True),
    ('(1,2)', r'\boxed{1 < x < 2}', True), ('1 < x < 2', r'\boxed{(1,2)}', True),
  ],
)  # fmt: skip
def test_formulas_are_equal_both_ways_or_not(gold, answer, equal):
  assert verdicts('math', gold, answer)[0] is equal
