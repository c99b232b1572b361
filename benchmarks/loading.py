"""Compares loading a model with transformers: seconds until every weight is read, and memory.

The two are measured pair by pair.

  benchmarks/make_peers.sh peers
  python benchmarks/loading.py --model=SmolLM2-135M-Instruct --hf=peers/hf/bin/python \\
    --out=benchmarks/loading.json

Each loads model and tokenizer in a fresh process from the page cache, and then reads every weight,
so that a mapped file counts in full. The time excludes imports. Anonymous memory, which belongs to
no file, is relative to the float32 weights, and excludes the imports' memory.
"""

import statistics
import sys

import harness


def main() -> None:
  """Measures, prints a table and writes JSON."""
  parser = harness.parser(__doc__, 'loading.json')
  parser.set_defaults(repeats=5)
  args = parser.parse_args()
  runs = {
    'imm_jax': harness.Run(sys.executable, 'imm_jax_worker', 'load', {}),
    'transformers': harness.Run(args.hf, 'transformers_worker', 'load', {}),
  }
  replies = {name: [] for name in runs}
  for i in range(1 if args.quick else args.repeats):
    order = list(runs)[:: 1 if i % 2 == 0 else -1]
    _, measured = harness.measure(
      {name: runs[name] for name in order}, args.model, 1, poll_secs=0.005
    )
    for name in runs:
      replies[name] += measured[name]
  ours, theirs = ([reply['secs'] for reply in replies[name]] for name in runs)
  anonymous = {
    name: [run['anonymous_gib'] / run['model_gib'] for run in replies[name]] for name in runs
  }
  weights = [reply['weights_secs'] for reply in replies['transformers']]
  sums = [replies[name][0]['sum'] for name in runs]
  results = {
    'replies': replies,
    'speed': harness.ratios(theirs, ours),
    'speed_without_their_tokenizer': harness.ratios(weights, ours),
    'anonymous': anonymous,
    'sum_difference': abs(sums[0] - sums[1]) / abs(sums[1]),
  }
  rows = [
    [
      harness.spread(results['speed']),
      harness.spread(results['speed_without_their_tokenizer']),
      f'{statistics.median(ours):.2f} / {statistics.median(theirs):.2f}',
      *(harness.spread(anonymous[name]) for name in runs),
      f'{results["sum_difference"]:.0e}',
    ]
  ]
  columns = [
    'speed',
    'their weights only',
    'seconds',
    'anonymous / weights',
    'theirs',
    'sums differ',
  ]
  harness.report(
    'imm_jax / transformers, loading: median [min, max]; speed > 1 is faster', columns, rows
  )
  harness.write(args.out, results)


if __name__ == '__main__':
  main()
