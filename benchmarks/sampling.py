"""Compares sampling and scoring with transformers, Tunix, llama.cpp and lm-eval.

The programs run in turn with the same model, prompts and dtype.

  benchmarks/make_peers.sh peers
  python benchmarks/sampling.py --model=SmolLM2-135M-Instruct --hf=peers/hf/bin/python \\
    --tunix=peers/tunix/bin/python --llama=peers/llama/bin/python \\
    --gguf=SmolLM2-135M-Instruct.Q4_1.gguf --arc=arc_easy_test.json \\
    --out=benchmarks/sampling.json

samples: 8 samples each of 64 questions with few-shot examples in front, until a newline or the end.
Each program takes the fastest of the batch sizes it is given, found on 32 questions.

decode: 32 different prompts of 119 tokens, 128 new tokens, greedy.

options: four options of each of 60 questions of ARC, four-shot.

On a GPU, --gpu: all in bfloat16, and compared with transformers only.
"""

import json
import random
import statistics
import sys

import harness

from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.rounds.experiment import make_task
from imm_jax.tasks import catalog

NAMES = [
  'Ann',
  'Ben',
  'Carla',
  'David',
  'Emma',
  'Frank',
  'Grace',
  'Henry',
  'Iris',
  'Jack',
  'Kate',
  'Leo',
  'Mia',
  'Noah',
]
THINGS = ['apples', 'books', 'coins', 'pens', 'cards', 'eggs', 'shells', 'stamps', 'toys', 'cups']


def word_problem(rng: random.Random, num_steps: int) -> tuple[str, str]:
  """Returns a question and its worked answer, a sentence for each of its one or two steps."""
  name, thing, a, b, c = (
    rng.choice(NAMES),
    rng.choice(THINGS),
    *(rng.randint(2, 20) for _ in range(3)),
  )
  if num_steps == 1:
    return (
      f'{name} has {a} {thing} and gets {b}. How many now?',
      f'{a} + {b} = {a + b}, so the answer is {a + b}.',
    )
  question = f'{name} buys {a} boxes of {b} {thing} and finds {c}. How many?'
  return (
    question,
    f'{a} boxes of {b} are {a * b}. {a * b} + {c} = {a * b + c}, so the answer is {a * b + c}.',
  )


def few_shot_prompts(num_questions: int) -> list[str]:
  """Returns prompts of about 120 tokens; two solved questions in front are the same in all."""
  rng = random.Random(0)
  solved = ''.join('Question: {}\nAnswer: {}\n\n'.format(*word_problem(rng, n)) for n in (1, 2))
  return [
    f'{solved}Question: {word_problem(rng, rng.choice((1, 2)))[0]}\nAnswer:'
    for _ in range(num_questions)
  ]


def texts_of_length(tokenizer: Tokenizer, num_rows: int, length: int) -> list[list[int]]:
  """Returns token ids of different texts, cut to the length."""
  rng = random.Random(1)
  texts = [
    '\n'.join(' '.join(word_problem(rng, 2)) for _ in range(length // 8)) for _ in range(num_rows)
  ]
  return [tokenizer.encode(text)[:length] for text in texts]


def fastest(name: str, runs: list[harness.Run], args) -> harness.Run:
  """Returns the run that makes the most tokens a second, from one measurement."""
  if len(runs) == 1:
    return runs[0]
  named = {f'{name}, trial {i}': run for i, run in enumerate(runs)}
  _, replies = harness.measure(named, args.model, 1, gpu=args.gpu)
  return named[max(named, key=lambda key: replies[key][0]['num_tokens'] / replies[key][0]['secs'])]


def samples(args, tokenizer: Tokenizer) -> tuple[dict, dict]:
  """Returns all programs' replies, and the batch sizes they took."""
  texts = few_shot_prompts(8 if args.quick else 64)
  prompts = [tokenizer.encode_prompt(text) for text in texts]
  print(
    f'samples: prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens', flush=True
  )
  stop_ids = sorted(
    {*map(int, tokenizer.tokens_containing(['\n']).nonzero()[0]), *tokenizer.stop_ids}
  )

  def settings(indices, batch_size):
    return {
      'prompts': [prompts[i] for i in indices],
      'texts': [texts[i] for i in indices],
      'num_samples': 8,
      'temperature': 0.7,
      'max_new_tokens': 16 if args.quick else 64,
      'stop': ['\n'],
      'stop_ids': stop_ids,
      'batch_size': batch_size,
    }

  all_of, half = range(len(texts)), range(0, len(texts), 2)
  by_length = sorted(all_of, key=lambda i: len(prompts[i]))
  warm = by_length[::4] + by_length[-1:]  # all lengths that occur
  chosen, runs = {}, {}
  for name, python, worker, sizes in (
    ('imm_jax', sys.executable, 'imm_jax_worker', args.num_slots),
    ('transformers', args.hf, 'transformers_worker', args.batch_sizes),
    ('Tunix', args.tunix, 'tunix_worker', args.batch_sizes),
  ):
    if python:
      trials = [
        harness.Run(python, worker, 'generate', settings(half, size), settings(warm, size))
        for size in sizes
      ]
      size = chosen[name] = fastest(name, trials, args).settings['batch_size']
      # Tunix compiles for a number of rows.
      warm_questions = all_of[:size] if name == 'Tunix' else warm
      runs[name] = harness.Run(
        python, worker, 'generate', settings(all_of, size), settings(warm_questions, size)
      )
  _, replies = harness.measure(runs, args.model, args.repeats, gpu=args.gpu)
  lengths = {
    name: [run['num_tokens'] / run['num_rows'] for run in replies[name]] for name in replies
  }
  return replies, {'batch_size': chosen, 'tokens_a_completion': lengths}


def decode(args, tokenizer: Tokenizer) -> tuple[dict, dict]:
  """Returns all programs' replies, and the share of rows whose first 32 tokens are ours."""
  num_rows, length, num_new = (4, 30, 16) if args.quick else (32, 119, 128)
  settings = {'prompts': texts_of_length(tokenizer, num_rows, length), 'max_new_tokens': num_new}
  runs = {'imm_jax': harness.Run(sys.executable, 'imm_jax_worker', 'decode', settings, {})}
  for cache in args.caches:
    runs[f'transformers, {cache}'] = harness.Run(
      args.hf, 'transformers_worker', 'decode', settings | {'cache': cache}, {}
    )
  if args.tunix:
    runs['Tunix'] = harness.Run(args.tunix, 'tunix_worker', 'decode', settings, {})
  if args.llama:
    runs['llama.cpp'] = harness.Run(
      args.llama, 'llama_worker', 'decode', settings | {'gguf': args.gguf}, {}
    )
  warm, replies = harness.measure(runs, args.model, args.repeats, gpu=args.gpu)
  agreement = {}
  for name in replies:
    pairs = list(zip(warm['imm_jax']['tokens'], warm[name]['tokens'], strict=True))
    assert all(len(row) == num_new for _, row in pairs), (
      f'{name}: a row is not {num_new} tokens long'
    )
    agreement[name] = {
      'first_32': statistics.mean(a[:32] == b[:32] for a, b in pairs),
      'all': statistics.mean(a == b for a, b in pairs),
    }
    for reply in replies[name]:
      del reply['tokens']
  return replies, {'same_rows': agreement}


def options(args, tokenizer: Tokenizer) -> tuple[dict, dict]:
  """Returns both programs' replies, and the largest difference of an option's log-probability.

  The difference is in nats.
  """
  task = make_task(
    'arc',
    catalog.spec('arc_easy', train_source=args.arc, test_source='', test_size=100, num_shots=4),
  )
  examples = [example for example in task.test if len(example.options) == 4][
    : 8 if args.quick else 60
  ]
  texts = [
    [task.prompt(example, task.shots), list(task.continuations(example))] for example in examples
  ]
  settings = {
    'prompts': [tokenizer.encode_prompt(prompt) for prompt, _ in texts],
    'options': [[tokenizer.encode(option) for option in own] for _, own in texts],
    'texts': texts,
    'batch_size': 16,
  }
  runs = {
    'imm_jax': harness.Run(sys.executable, 'imm_jax_worker', 'score', settings, {}),
    'lm-eval': harness.Run(args.hf, 'transformers_worker', 'score', settings, {}),
  }
  _, replies = harness.measure(runs, args.model, args.repeats, gpu=args.gpu)
  ours, theirs = (sum(replies[name][0]['sums'], []) for name in runs)
  difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
  for reply in sum(replies.values(), []):
    del reply['sums']
  return replies, {'largest_difference': difference}


def main() -> None:
  """Measures, prints a table and writes JSON."""
  parser = harness.parser(__doc__, 'sampling.json')
  parser.add_argument(
    '--arc', default='', help='a .json file of ARC; without it, options is left out'
  )
  parser.add_argument('--workloads', nargs='+', default=['samples', 'decode', 'options'])
  parser.add_argument(
    '--num_slots', type=int, nargs='+', default=[64, 128], help='of imm_jax, in samples'
  )
  parser.add_argument(
    '--batch_sizes',
    type=int,
    nargs='+',
    default=[4, 8, 16],
    help='questions, of the others, in samples',
  )
  parser.add_argument(
    '--caches',
    nargs='+',
    default=['dynamic', 'static'],
    help="of transformers, in decode; also 'compiled'",
  )
  parser.add_argument(
    '--llama',
    help='the Python that has llama-cpp-python, in decode; without it, llama.cpp is left out',
  )
  parser.add_argument('--gguf', help='the model as a .gguf file, for llama.cpp')
  args = parser.parse_args()
  if args.llama and not args.gguf:
    parser.error('--llama needs the model as a .gguf file: give --gguf')
  if args.gpu and (args.tunix or args.llama or args.arc):
    parser.error('--gpu goes with --hf, and with the workloads samples and decode')
  if args.quick:
    args.repeats, args.num_slots, args.batch_sizes = 2, args.num_slots[:1], args.batch_sizes[:1]
  tokenizer = Tokenizer.load(args.model)
  workloads = {'samples': samples, 'decode': decode, 'options': options}
  results, rows = {}, []
  for workload in args.workloads:
    if workload == 'options' and not args.arc:
      print('options: left out, there is no --arc')
      continue
    replies, checks = workloads[workload](args, tokenizer)
    print(f'{workload}: {json.dumps(checks)}')
    count = 'num_options' if workload == 'options' else 'num_tokens'
    rates = {name: [run[count] / run['secs'] for run in runs] for name, runs in replies.items()}
    secs = {name: [run['secs'] for run in runs] for name, runs in replies.items()}
    peaks = {name: max(run['peak_gib'] for run in runs) for name, runs in replies.items()}
    peers = {}
    for name in list(replies)[1:]:
      peers[name] = {
        'rate': harness.ratios(rates['imm_jax'], rates[name]),
        'secs': harness.ratios(secs[name], secs['imm_jax']),
        'peak': peaks['imm_jax'] / peaks[name],
      }
      rows.append(
        [
          workload,
          name,
          harness.spread(peers[name]['secs']),
          harness.spread(peers[name]['rate']),
          *(
            f'{statistics.median(x["imm_jax"]):.1f} / {statistics.median(x[name]):.1f}'
            for x in (secs, rates)
          ),
          f'{peaks["imm_jax"]:.1f} / {peaks[name]:.1f}',
        ]
      )
    results[workload] = {'replies': replies, 'ratios': peers, **checks}
    harness.write(args.out, results)
  columns = [
    'workload',
    'peer',
    'speed, all',
    'speed, a token or option',
    'seconds',
    'tokens or options/s',
    'peak GiB',
  ]
  harness.report('imm_jax / peer: median [min, max]; speed > 1 is faster', columns, rows)


if __name__ == '__main__':
  main()
