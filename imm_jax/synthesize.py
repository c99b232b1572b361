"""Questions + sampler + verifier -> accepted completions, and the reason why each of the others is not."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from imm_jax import packing
from imm_jax.sampler import Completion
from imm_jax.tasks import Example


@dataclasses.dataclass(frozen=True)
class SynthesizeConfig:
  """What becomes training data."""

  num_questions: int  # train questions a round; 0 takes all
  max_accepted_per_question: int
  questions_per_chunk: int  # sampled together, and saved when all are done

  def __post_init__(self):
    if self.num_questions < 0 or self.max_accepted_per_question < 1 or self.questions_per_chunk < 1:
      raise ValueError(f'synthesize: a value is out of range in {self}')


def accept(
  examples: Sequence[Example],
  completions: Sequence[Sequence[Completion]],
  verify: Callable[[Example, str], bool],
  *,
  prompts: Sequence[Sequence[int]],
  max_length: int,
  max_accepted_per_question: int,
) -> list[dict[str, Any]]:
  """Returns one record a completion, in order: what was sampled, its verdict, and if not accepted, why not.

  A reason is 'wrong', 'truncated' (no stop before max_new_tokens), 'duplicate' (the question has this text already),
  'enough' (the question has its share) or 'too_long' (prompt and completion exceed max_length tokens).
  prompts are the token ids that fine-tuning will put before each completion of a question.
  """
  records = []
  for example, prompt, samples in zip(examples, prompts, completions, strict=True):
    taken: set[str] = set()
    for index, sample in enumerate(samples):
      right = verify(example, sample.text)
      reason = ''
      if not right:
        reason = 'wrong'
      elif sample.finish_reason == 'length':
        reason = 'truncated'
      elif sample.text.strip() in taken:
        reason = 'duplicate'
      elif len(taken) == max_accepted_per_question:
        reason = 'enough'
      elif packing.num_slots(prompt, sample.tokens) > max_length:
        reason = 'too_long'
      else:
        taken.add(sample.text.strip())
      records.append(
        {
          'question_id': example.id,
          'question': example.question,
          'gold': example.answer,
          'sample_index': index,
          'text': sample.text,
          'tokens': sample.tokens,
          'logprob': sum(sample.logprobs),
          'finish_reason': sample.finish_reason,
          'right': right,
          'accepted': not reason,
          'reason': reason,
        }
      )
  return records


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Returns how many samples there are, the share that is right, and how many and what share of all were accepted.

  Raises ValueError when none was accepted.
  """
  num_accepted = sum(record['accepted'] for record in records)
  if not num_accepted:
    raise ValueError(
      f'none of {len(records)} completions was accepted, so there is nothing to learn from: take an easier task, more'
      ' questions (synthesize.num_questions) or more samples (sampler.num_samples_per_prompt)'
    )
  return {
    'num_samples': len(records),
    'right_rate': sum(record['right'] for record in records) / len(records),
    'acceptance_rate': num_accepted / len(records),
    'num_accepted': num_accepted,
  }
