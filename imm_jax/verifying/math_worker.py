"""Compares formulas with math-verify, one line of JSON [gold, text, search] each.

worker.py starts it.
"""

import json
import math
import os
import resource
import sys

import math_verify
import sympy

MEMORY_BYTES = 2 * 2**30  # Address space, which limits how far a formula can expand.
PLACES = 6  # Decimals, or significant digits of numbers below SMALL, that have to agree.
SMALL = 1e-3
PRECISION = 60  # Digits: with math-verify's 15 all differences below 1e-15 are none.


def places(formulas):
  """Returns the number of decimals that have to agree, so that 2e-7 is not 4e-7."""
  floats = [
    abs(x)
    for formula in formulas
    if isinstance(formula, sympy.Basic)
    for x in formula.atoms(sympy.Float)
    if x != 0
  ]
  smallest = min(floats, default=sympy.Float(1))
  return PLACES if smallest >= SMALL else PLACES - math.floor(sympy.log(smallest, 10).evalf())


def same(gold, text, search):
  """Returns whether `text`, or a formula in it, is the formula `gold`."""
  latex = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
  expressions = [*latex, math_verify.ExprExtractionConfig()] if search else latex
  expected = math_verify.parse(f'\\boxed{{{gold}}}', latex, parsing_timeout=0)
  found = math_verify.parse(
    text if search else f'\\boxed{{{text}}}', expressions, parsing_timeout=0
  )
  return math_verify.verify(
    expected,
    found,
    float_rounding=places([*expected, *found]),
    numeric_precision=PRECISION,
    allow_set_relation_comp=True,  # else (1, 2) is 1 < x < 2, and 1 < x < 2 is not (1, 2)
    timeout_seconds=0,
  )


def main():
  """Answers until its input ends."""
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
  replies = os.fdopen(os.dup(1), 'w', buffering=1)
  replies.write('ready\n')
  nothing = os.open(os.devnull, os.O_WRONLY)
  for standard in (1, 2):  # Whatever else is printed.
    os.dup2(nothing, standard)
  for line in sys.stdin:
    try:
      replies.write('correct\n' if same(*json.loads(line)) else 'incorrect\n')
    except Exception:  # Third-party code on a model's text.
      replies.write('error\n')


if __name__ == '__main__':
  main()
