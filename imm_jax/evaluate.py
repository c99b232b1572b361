"""Measures how good a model is at a task: accuracy with its interval, mean@k, maj@k and pass@k.

The accuracy of guessing is reported beside them as a baseline.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from etils import epath
import jax
import numpy as np
from scipy import stats

from imm_jax import console, processes
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models.transformer import Params, Transformer
from imm_jax.sampling import prefill, scoring
from imm_jax.sampling.choice import Rule
from imm_jax.sampling.prefill import Request
from imm_jax.sampling.sampler import Sampler, SamplerConfig
from imm_jax.tasks import Example, guess_accuracy, Task


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """What is measured beside the greedy (or likelihood) accuracy of the merged params."""

  tuned: bool  # Whether the tuned params are measured too, before the merge.
  num_samples_per_prompt: int  # > 0: mean@k, maj@k and pass@k of generated answers as well.
  temperature: float  # The temperature of those samples.
  text_source: str = ''  # A text file whose negative log-likelihood is measured too.
  text_length: int = 256  # The text is cut into pieces of this many tokens.

  def __post_init__(self):
    if self.num_samples_per_prompt < 0:
      raise ValueError(
        f'evaluate.num_samples_per_prompt: {self.num_samples_per_prompt} is negative'
      )
    if problem := Rule(self.temperature).problem():
      raise ValueError(f'evaluate.{problem}')
    if self.text_length < 2:
      raise ValueError(f'evaluate.text_length: {self.text_length} is less than 2')
    if self.text_source and not epath.Path(self.text_source).exists():
      raise ValueError(f'evaluate.text_source: {self.text_source}: no such file')


def wilson(num_right: int, n: int) -> tuple[float, float]:
  """Returns Wilson's score interval of a proportion at 95 % (doi 10.2307/2276774)."""
  low, high = stats.binomtest(num_right, n).proportion_ci(0.95, method='wilson')
  return float(low), float(high)


def pass_at_k(n: int, num_right: int, k: int) -> float:
  """Returns the unbiased estimate of P(one of k samples is right) from n samples.

  See arXiv 2107.03374, eq. 1.
  """
  return 1.0 - math.comb(n - num_right, k) / math.comb(n, k)


def evaluate(
  model: Transformer,
  params: Params,
  tokenizer: Tokenizer,
  tasks: Mapping[str, Task],
  config: EvaluateConfig,
  sampler_config: SamplerConfig,
  *,
  key: jax.Array,
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
  """Returns the results {task: {accuracy, low, high, n, guess, ...}} and a record of each answer.

  `accuracy` counts answers that are stated in the requested form. `accuracy_flexible` is reported
  too where the task has a lenient reader. A record holds an answer and its verdict.

  model and params are sharded by sharding.SAMPLE; key seeds the samples of mean@k.
  """
  results, records = {}, []
  for name, task in tasks.items():
    measure = _likelihood if task.scoring == 'likelihood' else _greedy
    right, answers = measure(model, params, tokenizer, task, sampler_config)
    low, high = wilson(sum(right), len(right))
    results[name] = {'accuracy': sum(right) / len(right), 'low': low, 'high': high, 'n': len(right)}
    if task.verify_flexible is not None:
      wrong = [i for i, ok in enumerate(right) if not ok]
      lenient = judge(
        task, [task.test[i] for i in wrong], [[answers[i]] for i in wrong], flexible=True
      )
      results[name]['accuracy_flexible'] = (sum(right) + sum(ok for [ok] in lenient)) / len(right)
    results[name]['guess'] = processes.on_first(lambda task=task: guess_accuracy(task, task.test))
    if config.num_samples_per_prompt and task.scoring == 'generate':
      results[name] |= _sampled(model, params, tokenizer, task, config, sampler_config, key)
    for example, answer, ok in zip(task.test, answers, right, strict=True):
      records.append(
        {
          'task': name,
          'id': example.id,
          'question': example.question,
          'answer': answer,
          'gold': example.answer,
          'right': ok,
        }
      )
  return results, records


def judge(
  task: Task, examples: Sequence[Example], texts: Sequence[Sequence[str]], *, flexible: bool = False
) -> list[list[bool]]:
  """Returns the verdict on each text of each example.

  Process 0 decides for all: a verdict may depend on its clock, and all processes have to continue
  with the same verdicts.
  """
  pairs = [
    (example, text) for example, samples in zip(examples, texts, strict=True) for text in samples
  ]
  verdicts = iter(processes.on_first(lambda: task.judge(pairs, flexible=flexible)))
  return [[next(verdicts) for _ in samples] for samples in texts]


def text_nll(
  model: Transformer, params: Params, tokenizer: Tokenizer, config: EvaluateConfig, batch_size: int
) -> dict[str, float]:
  """Returns the mean negative log-likelihood of config.text_source.

  'nll_nats' is the mean per token, and 'num_tokens' the number of tokens it is taken over.

  The text is cut into pieces of text_length tokens. In each piece, every token but the first is
  predicted from those before it.
  """
  tokens, T = tokenizer.encode(epath.Path(config.text_source).read_text()), config.text_length
  pieces = [
    tokens[start : start + T] for start in range(0, len(tokens), T) if start + 1 < len(tokens)
  ]
  if not pieces:
    raise ValueError(f'evaluate.text_source: {config.text_source}: has less than two tokens')
  with console.progress('evaluate the text', len(pieces), 'pieces') as advance:
    requests = [Request(f'{config.text_source}/{i}', piece[:1]) for i, piece in enumerate(pieces)]
    options = [[piece[1:]] for piece in pieces]
    scores = scoring.score(model, params, requests, options, batch_size=batch_size, advance=advance)
  logprobs = np.concatenate([score.logprobs for [score] in scores])
  return {'nll_nats': -float(logprobs.mean(dtype=np.float64)), 'num_tokens': logprobs.size}


def make_requests(tokenizer: Tokenizer, task: Task, examples: Sequence[Example]) -> list[Request]:
  """Returns the prompts of examples, each after the task's solved examples."""
  return [
    Request(example.id, tokenizer.encode_prompt(task.prompt(example, task.shots)))
    for example in examples
  ]


def make_options(
  tokenizer: Tokenizer, task: Task, examples: Sequence[Example]
) -> list[list[list[int]]]:
  """Returns the token ids of each example's options."""
  return [[tokenizer.encode(text) for text in task.continuations(example)] for example in examples]


def check_lengths(
  tokenizer: Tokenizer, max_length: int, task: Task, examples: Sequence[Example]
) -> None:
  """Checks that each example's prompt and its completion or options fit in max_length tokens.

  Raises ValueError naming the first example that does not fit.
  """
  requests = make_requests(tokenizer, task, examples)
  if task.scoring == 'likelihood':
    scoring.check_requests(requests, make_options(tokenizer, task, examples), max_length)
  else:
    prefill.check_requests(requests, task.max_new_tokens, max_length)


def _generate(model, params, tokenizer, task, config, key, label):
  requests = make_requests(tokenizer, task, task.test)
  decoding = config.decoding(task.max_new_tokens, task.stop)
  with console.progress(label, len(requests) * decoding.num_samples, 'answers') as advance:
    return Sampler(model, params, tokenizer, config).sample(
      requests, decoding, key=key, advance=advance
    )


def _greedy(model, params, tokenizer, task, sampler_config) -> tuple[list[bool], list[str]]:
  config = dataclasses.replace(sampler_config, num_samples_per_prompt=1, temperature=0.0)
  completions = _generate(
    model, params, tokenizer, task, config, jax.random.key(0), f'evaluate {task.name}'
  )
  answers = [samples[0].text for samples in completions]
  return [ok for [ok] in judge(task, task.test, [[answer] for answer in answers])], answers


def _likelihood(model, params, tokenizer, task, sampler_config) -> tuple[list[bool], list[str]]:
  """Takes the option that the model finds most likely, by the task's normalisation."""
  requests = make_requests(tokenizer, task, task.test)
  options = make_options(tokenizer, task, task.test)
  with console.progress(f'evaluate {task.name}', sum(map(len, options)), 'options') as advance:
    scores = scoring.score(
      model, params, requests, options, batch_size=sampler_config.num_slots, advance=advance
    )
  best = []
  for example, of_options in zip(task.test, scores, strict=True):
    sizes = [len(option) if task.normalize == 'per_character' else 1 for option in example.options]
    best.append(
      int(
        np.argmax(
          [np.sum(score.logprobs) / size for score, size in zip(of_options, sizes, strict=True)]
        )
      )
    )
  answers = [example.options[i] for example, i in zip(task.test, best, strict=True)]
  return [ok for [ok] in judge(task, task.test, [[answer] for answer in answers])], answers


def _sampled(model, params, tokenizer, task, config, sampler_config, key) -> dict[str, float]:
  k = config.num_samples_per_prompt
  decoding = dataclasses.replace(
    sampler_config, num_samples_per_prompt=k, temperature=config.temperature
  )
  completions = _generate(
    model, params, tokenizer, task, decoding, key, f'evaluate {task.name} x {k}'
  )
  right = judge(task, task.test, [[sample.text for sample in samples] for samples in completions])
  majority = [
    _majority([task.extract(c.text) for c in samples], ok)
    for samples, ok in zip(completions, right, strict=True)
  ]
  return {
    f'mean@{k}': float(np.mean(right)),
    f'maj@{k}': float(np.mean(majority)),
    f'pass@{k}': float(np.mean([pass_at_k(k, sum(ok), k) for ok in right])),
  }


def _majority(answers: Sequence[str], right: Sequence[bool]) -> bool:
  """Returns whether the most common answer is right.

  Of equally common answers the first sampled one decides. An empty answer is not counted.
  """
  votes = Counter(answer for answer in answers if answer).most_common(1)
  return bool(votes) and right[answers.index(votes[0][0])]
