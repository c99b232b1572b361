"""Compares fine-tuning with transformers, TRL and Tunix: time and memory, pair by pair.

The programs run in turn with the same model, data, optimizer and dtype.

  benchmarks/make_peers.sh peers
  python benchmarks/finetune.py --model=SmolLM2-135M-Instruct --hf=peers/hf/bin/python \\
    --tunix=peers/tunix/bin/python --gsm8k=gsm8k_train.jsonl --out=benchmarks/finetune.json

full: optimizer steps of 8 x 256 tokens (--rows, --length), all of them targets; AdamW without
decay, gradients clipped at 1.

pairs: questions of GSM8K and their solutions, which differ in length; padding does not count as
tokens. imm_jax and TRL pack them into rows of 512, 4 rows per step; transformers pads 8 pairs per
step, about as many tokens, to the longest.

On a GPU, --gpu: computed in bfloat16 with float32 weights, and compared with transformers only.
"""

import json
import pathlib
import random
import statistics
import sys

import harness

from imm_jax.formats.tokenizer import Tokenizer


def full(args, tokenizer: Tokenizer) -> dict[str, harness.Run]:
  """Returns the runs: steps on one batch."""
  del tokenizer
  rng, batch_size, length = random.Random(0), *((2, 32) if args.quick else (args.rows, args.length))
  tokens = [[rng.randrange(3, 49152) for _ in range(length + 1)] for _ in range(batch_size)]
  settings = {'tokens': tokens, 'num_steps': args.num_steps, 'learning_rate': 1e-5}
  warm = {'num_steps': 2}  # Tunix compiles twice
  runs = {
    name: harness.Run(sys.executable, 'imm_jax_worker', 'train', settings | {'remat': remat}, warm)
    for name, remat in zip(names(args.remat), args.remat, strict=True)
  }
  runs['transformers'] = harness.Run(args.hf, 'transformers_worker', 'train', settings, warm)
  if args.tunix:
    runs['Tunix'] = harness.Run(args.tunix, 'tunix_worker', 'train', settings, warm)
  return runs


def pairs(args, tokenizer: Tokenizer) -> dict[str, harness.Run]:
  """Returns the runs: steps on pairs, the first one on the same few."""
  lines = pathlib.Path(args.gsm8k).read_text().splitlines()[: 40 if args.quick else 256]
  rows = [json.loads(line) for line in lines]
  texts = [(f'Question: {row["question"]}\nAnswer:', f' {row["answer"]}') for row in rows]
  ids = [
    (tokenizer.encode_prompt(prompt), tokenizer.encode(completion)) for prompt, completion in texts
  ]
  settings = {'pairs': ids, 'num_steps': args.num_steps, 'learning_rate': 1e-5}
  # One step holds them, packed or padded
  warm = {'pairs': ids[: args.padded_rows // 2], 'num_steps': 1}
  packed = settings | {'batch_size': args.packed_rows, 'max_length': 512}
  runs = {
    name: harness.Run(
      sys.executable, 'imm_jax_worker', 'train_pairs', packed | {'remat': remat}, warm
    )
    for name, remat in zip(names(args.remat), args.remat, strict=True)
  }
  padded = settings | {'batch_size': args.padded_rows}
  runs['transformers, padded'] = harness.Run(
    args.hf, 'transformers_worker', 'train_pairs', padded, warm
  )
  if args.gpu:
    return runs
  # The first step of each request is not measured.
  runs['TRL, packed'] = harness.Run(args.hf, 'transformers_worker', 'train_trl', packed)
  return runs


def names(remat: list[str]) -> list[str]:
  """Returns the names of imm_jax's runs.

  The first, which the peers are compared with, has the plain name.
  """
  return ['imm_jax', *(f'imm_jax, remat {policy}' for policy in remat[1:])]


def main() -> None:
  """Measures, prints a table and writes JSON."""
  parser = harness.parser(__doc__, 'finetune.json')
  parser.add_argument(
    '--gsm8k', default='', help='a .jsonl file of GSM8K; without it, pairs is left out'
  )
  parser.add_argument('--workloads', nargs='+', default=['full', 'pairs'])
  parser.add_argument('--num_steps', type=int, default=4, help='optimizer steps a repetition')
  parser.add_argument(
    '--remat', nargs='+', default=['dots'], help='of imm_jax; the first is compared with the peers'
  )
  parser.add_argument('--rows', type=int, default=8, help='a step in full')
  parser.add_argument('--length', type=int, default=256, help='tokens a row in full')
  parser.add_argument(
    '--packed_rows', type=int, default=4, help='a step in pairs, of imm_jax and TRL'
  )
  parser.add_argument('--padded_rows', type=int, default=8, help='a step in pairs, of transformers')
  args = parser.parse_args()
  if args.gpu and args.tunix:
    parser.error('--gpu goes with --hf only')
  if args.quick:
    args.repeats, args.num_steps, args.packed_rows, args.padded_rows = 2, 1, 2, 4
  tokenizer = Tokenizer.load(args.model)
  results, rows = {}, []
  for workload in args.workloads:
    if workload == 'pairs' and not args.gsm8k:
      print('pairs: left out, there is no --gsm8k')
      continue
    runs = {'full': full, 'pairs': pairs}[workload](args, tokenizer)
    results[workload] = {}
    for name in list(runs)[1:]:  # two at a time: together they would not fit the memory
      both = {key: runs[key] for key in ('imm_jax', name)}
      warm, replies = harness.measure(both, args.model, args.repeats, gpu=args.gpu)
      rates = {key: [run['num_tokens'] / run['secs'] for run in replies[key]] for key in both}
      peaks = {key: max(run['peak_gib'] for run in replies[key]) for key in both}
      speed = harness.ratios(rates['imm_jax'], rates[name])
      losses = {key: reply['losses'][0] for key, reply in warm.items()}
      results[workload][name] = {
        'replies': replies,
        'speed': speed,
        'peak_gib': peaks,
        'first_losses': losses,
      }
      rows.append(
        [
          workload,
          name,
          harness.spread(speed),
          ' / '.join(f'{statistics.median(rates[key]):.0f}' for key in both),
          ' / '.join(f'{peaks[key]:.1f}' for key in both),
          f'{abs(losses["imm_jax"] - losses[name]):.0e}' if name in losses else '',
        ]
      )
      harness.write(args.out, results)
  columns = ['workload', 'peer', 'speed', 'tokens/s', 'peak GiB', 'losses differ']
  harness.report('imm_jax / peer: median [min, max]; speed > 1 is faster', columns, rows)


if __name__ == '__main__':
  main()
