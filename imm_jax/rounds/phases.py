"""The phases of a round: sampling what it learns from, fine-tuning, measuring; and its row of the summary."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import time
from typing import Any
import zlib

import jax
import numpy as np

from imm_jax import console, evaluate, formats, merging, processes
from imm_jax.formats import checkpoint
from imm_jax.formats.at_round import source_of
from imm_jax.lm import LM
from imm_jax.models.transformer import Params
from imm_jax.rounds import metrics, synthesize
from imm_jax.rounds.experiment import Experiment
from imm_jax.rounds.records import State
from imm_jax.sampling.sampler import Completion, Sampler
from imm_jax.tasks import Example, Task
from imm_jax.training import finetune, packing

Part = Callable[[str, Callable[[], Any]], Any]  # Workdir.part: a part of a round, by its name, is computed once


@dataclasses.dataclass
class Entry:
  """A round's row of the summary, filled phase by phase."""

  round_: int

  def __post_init__(self):
    self.values: dict[str, Any] = {
      'round': self.round_,
      'versions': processes.versions(),
      'devices': processes.devices(),
      'secs': {},
    }

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Times a phase. Raises processes.Stopped where a notice to stop has come before."""
    processes.check_stop()
    start = time.monotonic()
    yield
    self.values['secs'][name] = round(time.monotonic() - start, 3)

  def scalars(self) -> dict[str, float]:
    """Returns the row as flat metrics `<phase>/<name>`."""
    flat = {}
    for phase, name in (('id', 'eval'), ('ood', 'eval'), ('tuned_id', 'eval_tuned'), ('tuned_ood', 'eval_tuned')):
      for task, result in self.values.get(phase, {}).items():
        flat |= {f'{name}/{task}/{key}': value for key, value in result.items() if key.startswith('accuracy') or '@' in key}
    for phase in ('text', 'tuned_text', 'sample', 'finetune', 'merge'):
      numbers = {key: value for key, value in self.values.get(phase, {}).items() if isinstance(value, int | float)}
      flat |= {f'{phase}/{key}': value for key, value in numbers.items()}
    return flat | {f'{phase}/secs': value for phase, value in self.values['secs'].items()}


def sample(exp: Experiment, lm: LM, source: LM, round_: int, key: jax.Array, part: Part) -> list[dict[str, Any]]:
  """Returns a record for each completion of the round's questions, and each real solution that takes a sample's place.

  lm learns from them; source is the model that samples, with lm's vocabulary.
  """
  fraction, records = exp.synthesize.real_fraction, []
  if fraction < 1:
    source = source.to_sample()
  for task in exp.id_tasks.values():
    examples = train_examples(exp, task)
    sampled = sample_task(exp, lm, source, task, examples, key, part) if fraction < 1 else []
    if fraction:
      solutions = accept(exp, lm, task, examples, [[synthesize.solution(task, e, lm.tokenizer)] for e in examples])
      rng = np.random.default_rng((exp.seed, round_, zlib.crc32(f'real/{task.name}'.encode())))
      sampled = synthesize.mix(sampled, solutions, fraction, rng)
    records += sampled
  return records


def check_lengths(exp: Experiment, lm: LM) -> None:
  """Raises ValueError naming the first question of a run that does not fit the context of the model that answers it."""
  tokenizer, max_length = lm.tokenizer, lm.config.max_length
  measured = exp.all_tasks if exp.merge.rule == 'search' else exp.id_tasks | exp.ood_tasks
  for task in measured.values():
    evaluate.check_lengths(tokenizer, max_length, task, task.test)
  if exp.synthesize.teacher:
    source = source_of(exp.synthesize.teacher)
    tokenizer, max_length = formats.load_tokenizer(source), formats.read_config(source).max_length
  if exp.synthesize.real_fraction < 1:
    for task in exp.id_tasks.values():
      evaluate.check_lengths(tokenizer, max_length, task, train_examples(exp, task))


def train_examples(exp: Experiment, task: Task) -> Sequence[Example]:
  """Returns the questions of a task that a round samples, or takes the data's own solutions of."""
  return exp.train_questions(task)[: exp.synthesize.num_questions or None]


def accept(
  exp: Experiment, lm: LM, task: Task, examples: Sequence[Example], completions: Sequence[Sequence[Completion]]
) -> list[dict[str, Any]]:
  """Returns a record for each completion; see synthesize.accept."""
  return synthesize.accept(
    examples,
    completions,
    evaluate.judge(task, examples, [[sample.text for sample in samples] for samples in completions]),
    prompts=[lm.tokenizer.encode_prompt(task.prompt(example)) for example in examples],
    max_length=exp.finetune.max_length,
    max_accepted_per_question=exp.synthesize.max_accepted_per_question,
    deduplicate=exp.synthesize.deduplicate,
  )


def sample_task(
  exp: Experiment, lm: LM, source: LM, task: Task, examples: Sequence[Example], key: jax.Array, part: Part
) -> list[dict[str, Any]]:
  """Returns the records of one task's examples, sampled chunk by chunk from `source`, which is there for sampling."""
  sampler = Sampler(source.model, source.params, source.tokenizer, exp.sampler)
  requests = evaluate.make_requests(source.tokenizer, task, examples)
  decoding = exp.sampler.decoding(task.max_new_tokens, task.stop)
  total, size = len(requests) * decoding.num_samples, exp.synthesize.questions_per_chunk
  with console.progress(f'sample {task.name}', total, 'completions') as advance:

    def chunk(chosen: slice) -> list[dict[str, Any]]:
      completions = sampler.sample(requests, decoding, key=key, only=chosen, advance=advance)
      return accept(exp, lm, task, examples[chosen], completions)

    chunks = [slice(first, first + size) for first in range(0, len(examples), size)]
    parts = [part(f'sample-{task.name}-{i:05}', functools.partial(chunk, chosen)) for i, chosen in enumerate(chunks)]
  return [record for records in parts for record in records]


def fine_tune(
  exp: Experiment,
  lm: LM,
  params: Params,
  moments: Any,
  records: Sequence[Mapping[str, Any]],
  round_: int,
  writer: metrics.Writer,
  saved: checkpoint.Steps,
) -> tuple[Params, Any, dict[str, Any]]:
  """Returns params, which are donated, fine-tuned on the accepted records, the moments to keep, and what to say of it.

  It goes on from the newest of the checkpoints in `saved`, and adds to them.
  """
  pairs = accepted_pairs(exp, lm, records)
  rows = packing.pack(pairs, exp.finetune.max_length)
  history = []
  with console.progress(f'fine-tune on {len(pairs)} samples', finetune.num_steps(rows, exp.finetune), 'steps') as advance:

    def write(step: int, values: Mapping[str, float]) -> None:
      history.append(values)
      writer.write(round_, {f'finetune/{name}': value for name, value in values.items()}, step)
      advance(1)

    params, moments = finetune.fine_tune(
        lm.model, params, rows, exp.finetune, exp.optimizer, lm.mesh, seed=exp.seed, round_=round_, write=write,
        base=lm.params, moments=moments, saved=saved, save_every=exp.checkpoint.every_steps, report=console.note,
        profiled=lambda steps, wait: metrics.profiled(steps, exp.profile, writer.workdir, wait),
    )  # fmt: skip
  tokens = sum(values['num_tokens'] for values in history)
  loss = sum(values['loss_nats'] * values['num_tokens'] for values in history) / tokens if history else None
  kept, drift = moments if exp.optimizer.keep_moments else None, float(merging.drift_norm(lm.params, params))
  return params, kept, {'steps': len(history), 'tokens': int(tokens), 'loss_nats': loss, 'drift_norm': drift}


def accepted_pairs(exp: Experiment, lm: LM, records: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], list[int]]]:
  """Returns the token ids (prompt, completion) of what is learned from; the prompt has no solved examples."""
  pairs = []
  for record in records:
    if record['accepted']:
      prompt = exp.id_tasks[task_of(record)].prompt(Example(record['question_id'], record['question'], record['gold']))
      pairs.append((lm.tokenizer.encode_prompt(prompt), record['tokens']))
  return pairs


def some_pairs(
  exp: Experiment, lm: LM, records: Sequence[Mapping[str, Any]], num: int
) -> list[tuple[list[int], list[int]]]:  # fmt: skip
  """Returns at most num of the accepted pairs, drawn by the seed: what the importance of layers is measured on."""
  accepted = [record for record in records if record['accepted']]
  chosen = np.random.default_rng(exp.seed).permutation(len(accepted))[:num]
  return accepted_pairs(exp, lm, [accepted[i] for i in chosen])


def task_of(record: Mapping[str, Any]) -> str:
  """Returns the name of a record's task; see tasks.make_example."""
  return record['question_id'].rpartition('/')[0]


def evaluate_domains(
  exp: Experiment, lm: LM, params: Params, key: jax.Array, entry: Entry, which: str, part: Part
) -> list[dict[str, Any]]:
  """Measures params in and out of domain, task by task, into the entry; returns a record for each answer."""
  state = State(entry.round_, which)
  console.note(f'evaluate {state.name}')
  sampling, answers = dataclasses.replace(lm, params=params).to_sample(), []
  for domain, domain_tasks in (('id', exp.id_tasks), ('ood', exp.ood_tasks)):
    results = entry.values[state.key(domain)] = {}
    for name, task in domain_tasks.items():
      measure = functools.partial(
        evaluate.evaluate, sampling.model, sampling.params, lm.tokenizer, {name: task}, exp.evaluate, exp.sampler, key=key
      )
      result, items = part(f'evaluate-{which}-{name}', measure)
      results |= result
      answers += [{'params': which, **item} for item in items]
  found = {domain: entry.values[state.key(domain)] for domain in ('id', 'ood')}
  texts = [f'{domain.upper()} {name} {100 * x["accuracy"]:.1f}' for domain in found for name, x in found[domain].items()]
  console.note(f'{state.name}: {", ".join(texts)} % right')
  if exp.evaluate.text_source:
    measure = functools.partial(
      evaluate.text_nll, sampling.model, sampling.params, lm.tokenizer, exp.evaluate, exp.sampler.num_slots
    )
    entry.values[state.key('text')] = part(f'evaluate-{which}-text', measure)
  return answers


def accuracy(exp: Experiment, lm: LM, params: Params, tasks: Mapping[str, Task]) -> float:
  """Returns the mean accuracy of params over tasks, greedy or by likelihood."""
  sampling = dataclasses.replace(lm, params=params).to_sample()
  config, key = dataclasses.replace(exp.evaluate, num_samples_per_prompt=0), jax.random.key(0)
  results, _ = evaluate.evaluate(sampling.model, sampling.params, lm.tokenizer, tasks, config, exp.sampler, key=key)
  return float(np.mean([result['accuracy'] for result in results.values()]))
