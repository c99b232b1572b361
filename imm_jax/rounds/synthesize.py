"""Questions + sampler + verifier -> accepted completions, and the reason why each of the others is not; real solutions."""

import collections
from collections.abc import Sequence
import dataclasses
from typing import Any, Literal

import numpy as np

from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.sampling.sampler import Completion
from imm_jax.sampling.stopping import Stopping
from imm_jax.tasks import Example, Task
from imm_jax.training import packing


@dataclasses.dataclass(frozen=True)
class SynthesizeConfig:
  """What becomes training data."""

  num_questions: int  # train questions a round; 0 takes all
  max_accepted_per_question: int
  questions_per_chunk: int  # sampled together, and saved when all are done
  deduplicate: bool  # a question's completions of the same text count once
  data: Literal['replace', 'accumulate']  # learn from this round's accepted completions, or from those of all so far
  teacher: str  # the model that samples, in all rounds, as model.path names one; '' is the round's own
  real_fraction: float  # of the sequences to learn from, that are the data's own solutions

  def __post_init__(self):
    if self.num_questions < 0 or self.max_accepted_per_question < 1 or self.questions_per_chunk < 1:
      raise ValueError(f'synthesize: a value is out of range in {self}')
    if not 0 <= self.real_fraction <= 1:
      raise ValueError(f'synthesize.real_fraction: {self.real_fraction} is not in [0, 1]')
    if self.teacher and self.real_fraction == 1:
      raise ValueError('synthesize.teacher: has nothing to sample at real_fraction 1; lower that, or name no teacher')


def accept(
  examples: Sequence[Example],
  completions: Sequence[Sequence[Completion]],
  verdicts: Sequence[Sequence[bool]],
  *,
  prompts: Sequence[Sequence[int]],
  max_length: int,
  max_accepted_per_question: int,
  deduplicate: bool = True,
) -> list[dict[str, Any]]:
  """Returns one record a completion, in order: what was sampled, its verdict, and if not accepted, why not.

  A reason is 'wrong', 'truncated' (no stop before max_new_tokens), 'duplicate' (with deduplicate: the question has this text
  already), 'enough' (the question has its share) or 'too_long' (prompt and completion exceed max_length tokens).
  verdicts say of each completion whether it is right. prompts are the token ids that fine-tuning will put before each
  completion of a question.
  """
  records = []
  for example, prompt, samples, verdict in zip(examples, prompts, completions, verdicts, strict=True):
    taken: list[str] = []
    for index, (sample, right) in enumerate(zip(samples, verdict, strict=True)):
      reason = ''
      if not right:
        reason = 'wrong'
      elif sample.finish_reason == 'length':
        reason = 'truncated'
      elif deduplicate and sample.text.strip() in taken:
        reason = 'duplicate'
      elif len(taken) == max_accepted_per_question:
        reason = 'enough'
      elif packing.num_slots(prompt, sample.tokens) > max_length:
        reason = 'too_long'
      else:
        taken.append(sample.text.strip())
      records.append(
        {
          'question_id': example.id,
          'question': example.question,
          'gold': example.answer,
          'sample_index': index,
          'text': sample.text,
          'tokens': sample.tokens,
          'logprob': sum(sample.logprobs),
          'entropy': sum(sample.entropies),
          'finish_reason': sample.finish_reason,
          'right': right,
          'accepted': not reason,
          'reason': reason,
        }
      )
  return records


def solution(task: Task, example: Example, tokenizer: Tokenizer) -> Completion:
  """Returns the data's own solution as sampling would have given it: the target's tokens, with what ends a sample behind.

  In plain text that is the stop string in the separator of solved examples, tokenised together with the target; where that
  has none, the tokenizer's end token; in a chat, the token that its template ends a turn with. There are no
  log-probabilities and entropies.

  Raises ValueError when the tokenizer has no end token, and one is needed.
  """
  ending = task.separator if task.format == 'plain' else ''
  tokens = tokenizer.encode(task.target(example) + ending)
  stop = Stopping(tokenizer, task.stop).find(tokens)
  if stop is not None:
    return Completion(stop.text, tokens[: stop.num_tokens], [], [], 'stop')
  end = tokenizer.turn_end if task.format == 'chat' else tokenizer.end_id
  if end is None:
    raise ValueError(f'tasks.{task.name}: the tokenizer has no end token to end a solution with; give it a stop string')
  return Completion(task.target(example), [*tokenizer.encode(task.target(example)), end], [], [], 'stop')


def mix(
  sampled: Sequence[dict[str, Any]], solutions: Sequence[dict[str, Any]], fraction: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
  """Returns the records with so much of what is learned from taken from the data's own solutions.

  At 1 these are all solutions that are accepted: there are no samples. Else, of n accepted samples, round(fraction n) that
  rng draws are `replaced`: not accepted any more. As many accepted solutions, of questions that rng draws whether they have
  an accepted sample or not, come behind; none comes twice before all came once. So the total stays n.

  Args:
    sampled: records of `accept`.
    solutions: likewise, of `solution` of each question; those returned have {'real': True}, no log-probability, no entropy.
    fraction: of what is learned from, in (0, 1].
    rng: f(seed, round, task).

  Raises:
    ValueError: no solution is accepted.
  """
  none = dict.fromkeys(('sample_index', 'logprob', 'entropy'))
  real = [record | {'real': True, **none} for record in solutions]
  fitting = [record for record in real if record['accepted']]
  if not fitting:
    raise ValueError(
      f'synthesize.real_fraction: none of {len(real)} solutions is right and fits a row: raise finetune.max_length'
    )
  if fraction == 1:
    return real
  accepted = [i for i, record in enumerate(sampled) if record['accepted']]
  num_real = round(fraction * len(accepted))
  replaced = {accepted[i] for i in rng.permutation(len(accepted))[:num_real]}
  kept = [r | {'accepted': False, 'reason': 'replaced'} if i in replaced else r for i, r in enumerate(sampled)]
  return kept + [fitting[i] for i in np.resize(rng.permutation(len(fitting)), num_real)]


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Returns how many samples there are, what share of them is right and was accepted, and how many are learned from.

  Of these num_real are the data's own solutions, if any. Raises ValueError when none was accepted.
  """
  num_accepted = sum(record['accepted'] for record in records)
  samples = [record for record in records if not record.get('real')]
  if not num_accepted:
    reasons = collections.Counter(record['reason'] for record in records)
    why = ', '.join(f'{count} {reason}' for reason, count in reasons.most_common())
    raise ValueError(
      f'none of {len(records)} completions was accepted ({why}), so there is nothing to learn from: take an easier'
      ' task, more questions (synthesize.num_questions) or more samples (sampler.num_samples_per_prompt)'
    )
  found: dict[str, float] = {'num_samples': len(samples)}
  if samples:
    found['right_rate'] = sum(record['right'] for record in samples) / len(samples)
    found['acceptance_rate'] = sum(r['accepted'] or r['reason'] == 'replaced' for r in samples) / len(samples)
  found['num_accepted'] = num_accepted
  if num_real := sum(record['accepted'] for record in records if record.get('real')):
    found['num_real'] = num_real
  return found
