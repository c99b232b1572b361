"""Compares formulas with math-verify, a line of JSON [gold, text, search] each; started by children.py."""

import json
import os
import resource
import sys

import math_verify

MEMORY_BYTES = 2 * 2**30  # of address space: what a formula expands to


def same(gold, text, search):
  """Returns whether `text`, or a formula in it, is the formula `gold`."""
  formulas = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
  expected = math_verify.parse(f'\\boxed{{{gold}}}', formulas, parsing_timeout=0)
  expressions = [*formulas, math_verify.ExprExtractionConfig()]
  found = math_verify.parse(
    text if search else f'\\boxed{{{text.strip("$")}}}', expressions if search else formulas, parsing_timeout=0
  )
  return math_verify.verify(expected, found, timeout_seconds=0)


def main():
  """Answers until its input ends."""
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
  replies = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)  # whatever else prints
  replies.write('ready\n')
  for line in sys.stdin:
    try:
      replies.write('correct\n' if same(*json.loads(line)) else 'incorrect\n')
    except Exception:  # Third-party code on a model's text.
      replies.write('error\n')


if __name__ == '__main__':
  main()
