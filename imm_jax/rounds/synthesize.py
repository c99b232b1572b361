"""Selects the completions to train on, by verdict and by limits, and mixes in real solutions.

Each completion that is not accepted is recorded with the reason.
"""

import collections
from collections.abc import Sequence
import dataclasses
from typing import Literal

import numpy as np

from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.rounds.records import Sample
from imm_jax.sampling.sampler import Completion
from imm_jax.sampling.stopping import Stopping
from imm_jax.tasks import Example, Task
from imm_jax.training import packing


@dataclasses.dataclass(frozen=True)
class SynthesizeConfig:
  """Which completions become training data."""

  num_questions: int  # Train questions per round; 0 takes all.
  max_accepted_per_question: int
  questions_per_chunk: int  # Questions sampled together, and saved when all are done.
  deduplicate: bool  # Whether completions of a question with the same text count once.
  # Train on this round's accepted completions, or on those of all rounds so far.
  data: Literal['replace', 'accumulate']
  # The path of a model, as model.path, that samples in all rounds; '' samples from the run's own.
  teacher: str
  real_fraction: float  # The share of training sequences that are the data's own solutions.

  def __post_init__(self):
    if self.num_questions < 0 or self.max_accepted_per_question < 1 or self.questions_per_chunk < 1:
      raise ValueError(f'synthesize: a value is out of range in {self}')
    if not 0 <= self.real_fraction <= 1:
      raise ValueError(f'synthesize.real_fraction: {self.real_fraction} is not in [0, 1]')
    if self.teacher and self.real_fraction == 1:
      raise ValueError(
        'synthesize.teacher: has nothing to sample at real_fraction 1; lower that, or name no'
        ' teacher'
      )


def accept(
  examples: Sequence[Example],
  completions: Sequence[Sequence[Completion]],
  verdicts: Sequence[Sequence[bool]],
  *,
  prompts: Sequence[list[int]],
  config: SynthesizeConfig,
  max_length: int,
) -> list[Sample]:
  """Returns a sample for each completion, in order, with the reason if it is not trained on.

  A reason is 'wrong', 'truncated' (no stop before max_new_tokens), 'duplicate' (with
  config.deduplicate: the question has this text already), 'enough' (the question has its share) or
  'too_long' (prompt and completion exceed max_length tokens).

  Args:
    examples: the questions.
    completions: the completions of each question.
    verdicts: whether each completion is right.
    prompts: token ids that fine-tuning will put before each completion of a question.
    config: limits on the completions of a question.
    max_length: the length of a packed row in tokens.
  """
  samples = []
  for example, prompt, of_question, verdict in zip(
    examples, prompts, completions, verdicts, strict=True
  ):
    taken: list[str] = []
    for index, (completion, right) in enumerate(zip(of_question, verdict, strict=True)):
      reason = ''
      if not right:
        reason = 'wrong'
      elif completion.finish_reason == 'length':
        reason = 'truncated'
      elif config.deduplicate and completion.text.strip() in taken:
        reason = 'duplicate'
      elif len(taken) == config.max_accepted_per_question:
        reason = 'enough'
      elif packing.num_slots(prompt, completion.tokens) > max_length:
        reason = 'too_long'
      else:
        taken.append(completion.text.strip())
      samples.append(_sample(example, index, prompt, completion, right, reason))
  return samples


def _sample(
  example: Example, index: int, prompt: list[int], completion: Completion, right: bool, reason: str
) -> Sample:
  return Sample(
    question_id=example.id,
    question=example.question,
    gold=example.answer,
    sample_index=index,
    text=completion.text,
    tokens=completion.tokens,
    prompt_tokens=prompt,
    logprob=sum(completion.logprobs),
    entropy=sum(completion.entropies),
    finish_reason=completion.finish_reason,
    right=right,
    reason=reason,
  )


def solution(task: Task, example: Example, tokenizer: Tokenizer) -> Completion:
  """Returns the data's own solution as if it had been sampled: the target's tokens and an end.

  In plain text the end is the stop string in the separator of solved examples, tokenised together
  with the target; without one, it is the tokenizer's end token. In a chat it is the token that the
  template ends a turn with. There are no log-probabilities and entropies.

  Raises ValueError when an end token is needed and the tokenizer has none.
  """
  ending = task.separator if task.format == 'plain' else ''
  tokens = tokenizer.encode(task.target(example) + ending)
  stop = Stopping(tokenizer, task.stop).find(tokens)
  if stop is not None:
    return Completion(stop.text, tokens[: stop.num_tokens], [], [], 'stop')
  end = tokenizer.turn_end if task.format == 'chat' else tokenizer.end_id
  if end is None:
    raise ValueError(
      f'tasks.{task.name}: the tokenizer has no end token to end a solution with; give it a stop'
      ' string'
    )
  return Completion(
    task.target(example), [*tokenizer.encode(task.target(example)), end], [], [], 'stop'
  )


def mix(
  sampled: Sequence[Sample], solutions: Sequence[Sample], fraction: float, rng: np.random.Generator
) -> list[Sample]:
  """Replaces a fraction of the accepted samples by the data's own solutions.

  At fraction 1 there are no samples, and all accepted solutions are trained on. Below 1, with n
  accepted samples, rng draws round(fraction n) of them, which become `replaced`: no longer
  accepted. The same number of accepted solutions is appended. Their questions are drawn by rng,
  whether they have an accepted sample or not; no solution is used twice before all have been used
  once. The total stays n.

  Args:
    sampled: samples from `accept`.
    solutions: samples from `accept` for the `solution` of each question; those returned are `real`,
      without log-probability.
    fraction: the share of the accepted samples to replace, in (0, 1].
    rng: f(seed, round, task).

  Raises:
    ValueError: no solution is accepted.
  """
  real = [
    dataclasses.replace(one, real=True, sample_index=None, logprob=None, entropy=None)
    for one in solutions
  ]
  fitting = [one for one in real if one.accepted]
  if not fitting:
    raise ValueError(
      f'synthesize.real_fraction: none of {len(real)} solutions is right and fits a row: raise'
      ' finetune.max_length'
    )
  if fraction == 1:
    return real
  accepted = [i for i, one in enumerate(sampled) if one.accepted]
  num_real = round(fraction * len(accepted))
  mixed = list(sampled)
  for i in rng.permutation(len(accepted))[:num_real]:
    mixed[accepted[i]] = dataclasses.replace(mixed[accepted[i]], reason='replaced')
  return mixed + [fitting[i] for i in np.resize(rng.permutation(len(fitting)), num_real)]


def summary(samples: Sequence[Sample]) -> dict[str, float]:
  """Returns counts and shares of the samples: in all, right, accepted, and trained on.

  num_real of those trained on are the data's own solutions, if any. Raises ValueError when none was
  accepted.
  """
  num_accepted = sum(one.accepted for one in samples)
  if not num_accepted:
    reasons = collections.Counter(one.reason for one in samples)
    why = ', '.join(f'{count} {reason}' for reason, count in reasons.most_common())
    raise ValueError(
      f'none of {len(samples)} completions was accepted ({why}), so there is nothing to learn from:'
      ' take an easier task, more questions (synthesize.num_questions) or more samples'
      ' (sampler.num_samples_per_prompt)'
    )
  sampled = [one for one in samples if not one.real]
  found: dict[str, float] = {'num_samples': len(sampled)}
  if sampled:
    found['right_rate'] = sum(one.right for one in sampled) / len(sampled)
    found['acceptance_rate'] = sum(
      one.accepted or one.reason == 'replaced' for one in sampled
    ) / len(sampled)
  found['num_accepted'] = num_accepted
  if num_real := sum(one.accepted for one in samples if one.real):
    found['num_real'] = num_real
  return found


def some_pairs(samples: Sequence[Sample], num: int, seed: int) -> list[tuple[list[int], list[int]]]:
  """Returns the token ids (prompt, completion) of at most num accepted samples, drawn by seed."""
  accepted = [sample for sample in samples if sample.accepted]
  chosen = np.random.default_rng(seed).permutation(len(accepted))[:num]
  return [(accepted[i].prompt_tokens, accepted[i].tokens) for i in chosen]
