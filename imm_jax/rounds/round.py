"""The phases of a round: sample, fine_tune, merge, evaluate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import console, merging, processes
from imm_jax import evaluate as evaluation
from imm_jax.formats import checkpoint
from imm_jax.lm import LM
from imm_jax.merging import rules
from imm_jax.models.transformer import Params
from imm_jax.rounds import alpha as alphas
from imm_jax.rounds import loading, metrics, synthesize
from imm_jax.rounds.experiment import Experiment
from imm_jax.rounds.records import Answer, Sample, State
from imm_jax.rounds.run import Round, Run, RunState
from imm_jax.sampling.sampler import Completion, Sampler
from imm_jax.tasks import Example, Task
from imm_jax.training import finetune, packing
from imm_jax.training.packing import Batch


class Tuned(NamedTuple):
  """The result of fine-tuning, S_t+1 in the paper's notation."""

  params: Params
  opt_state: Any  # The next round starts with it; None without optimizer.keep_opt_state.


def sample(run: Run, round: Round, state: RunState) -> list[Sample]:
  """Samples solutions of the round's questions and verifies them.

  With synthesize.real_fraction, real solutions replace that share of the samples.
  """
  exp = run.exp
  samples = []
  with round.phase('sample'):
    source = _source(run, state) if exp.synthesize.real_fraction < 1 else None
    for task in exp.id_tasks.values():
      examples = exp.sampled_questions(task)
      sampled = _sample_task(run, round, source, task, examples) if source else []
      samples += _with_solutions(run, round, task, examples, sampled)
    run.workdir.write_lines(round.number, 'samples.jsonl', [one.to_json() for one in samples])
    round.summary.sample = synthesize.summary(samples)
    console.note(
      '{num_samples} samples; {num_accepted} pairs to learn from'.format(**round.summary.sample)
    )
  return samples


def _source(run: Run, state: RunState) -> LM:
  """Returns the model that samples, the teacher or the run's own model.

  A teacher is loaded for this round only. The run's own model takes the newest params.
  """
  if run.exp.synthesize.teacher:
    return loading.load_model(run.exp, run.exp.synthesize.teacher, run.mesh).to_sample()
  return dataclasses.replace(run.lm, params=state.sample_params).to_sample()


def _sample_task(
  run: Run, round: Round, source: LM, task: Task, examples: Sequence[Example]
) -> list[Sample]:
  """Returns samples of one task's examples, chunk by chunk; each chunk is a part of the round."""
  exp = run.exp
  sampler = Sampler(source.model, source.params, source.tokenizer, exp.sampler)
  requests = evaluation.make_requests(source.tokenizer, task, examples)
  decoding = exp.sampler.decoding(task.max_new_tokens, task.stop)
  size = exp.synthesize.questions_per_chunk
  samples = []
  with console.progress(
    f'sample {task.name}', len(requests) * decoding.num_samples, 'completions'
  ) as advance:
    for i, first in enumerate(range(0, len(examples), size)):

      def chunk(only: slice = slice(first, first + size)) -> list[dict[str, Any]]:
        completions = sampler.sample(requests, decoding, key=round.key, only=only, advance=advance)
        return [one.to_json() for one in _accept(run, task, examples[only], completions)]

      samples += map(Sample.from_json, round.part(f'sample-{task.name}-{i:05}', chunk))
  return samples


def _with_solutions(
  run: Run, round: Round, task: Task, examples: Sequence[Example], sampled: list[Sample]
) -> list[Sample]:
  """Returns the samples, with a share of them replaced by the data's own solutions."""
  fraction = run.exp.synthesize.real_fraction
  if not fraction:
    return sampled
  solutions = [[synthesize.solution(task, example, run.lm.tokenizer)] for example in examples]
  rng = np.random.default_rng(
    (run.exp.seed, round.number, zlib.crc32(f'real/{task.name}'.encode()))
  )
  return synthesize.mix(sampled, _accept(run, task, examples, solutions), fraction, rng)


def _accept(
  run: Run, task: Task, examples: Sequence[Example], completions: Sequence[Sequence[Completion]]
) -> list[Sample]:
  """Returns a sample for each completion, with its verdict."""
  return synthesize.accept(
    examples,
    completions,
    evaluation.judge(task, examples, [[one.text for one in samples] for samples in completions]),
    prompts=[run.lm.tokenizer.encode_prompt(task.prompt(example)) for example in examples],
    config=run.exp.synthesize,
    max_length=run.exp.finetune.max_length,
  )


def fine_tune(run: Run, round: Round, state: RunState, samples: Sequence[Sample]) -> Tuned:
  """Fine-tunes on the accepted samples; with evaluate.tuned, also measures the tuned params."""
  exp = run.exp
  with round.phase('finetune'):
    if exp.synthesize.data == 'accumulate':
      samples = [*run.earlier_samples(round.number), *samples]
    pairs = [(one.prompt_tokens, one.tokens) for one in samples if one.accepted]
    rows = packing.pack(pairs, exp.finetune.max_length)
    start = state.base if exp.finetune_from == 'base' else state.params
    # Training donates the params it starts from, so copy those that are needed afterwards.
    if start is state.base or start is state.anchor:
      start = jax.tree.map(jnp.copy, start)
    label = f'fine-tune on {len(pairs)} samples'
    with console.progress(label, finetune.num_steps(rows, exp.finetune), 'steps') as advance:
      train_state, steps = train(run, round, start, state.opt_state, rows, advance)
    tuned = run.trainer.result(train_state)
    drift = float(merging.drift_norm(state.base, tuned))
    round.summary.finetune = _summarise(steps) | {'drift_norm': drift}
  if exp.evaluate.tuned:
    evaluate(run, round, tuned, 'tuned')
  return Tuned(tuned, train_state.opt_state if exp.optimizer.keep_opt_state else None)


def _summarise(steps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
  """Returns the number of steps and tokens, and the mean loss in nats per token."""
  tokens = sum(values['num_tokens'] for values in steps)
  total = sum(values['loss_nats'] * values['num_tokens'] for values in steps)
  return {
    'steps': len(steps),
    'tokens': int(tokens),
    'loss_nats': total / tokens if steps else None,
  }


def train(
  run: Run,
  round: Round,
  start: Params,
  opt_state: Any,
  rows: Batch,
  advance: Callable[[int], None],
) -> tuple[finetune.TrainState, list[dict[str, float]]]:
  """Takes the optimizer steps of a round, resuming where an earlier process was stopped.

  Returns the state after the last step, and the metrics of all steps. Raises processes.Stopped
  on a notice to stop, after saving the steps taken so far.
  """
  exp = run.exp
  num_steps = finetune.num_steps(rows, exp.finetune)
  limit = np.float32(exp.finetune.max_drift or np.inf)
  every = exp.checkpoint.every_steps or np.inf

  def write(step: int, values: Mapping[str, float]) -> None:
    _check_finite(round, step, values)
    named = {f'finetune/{name}': value for name, value in values.items()}
    run.writer.write(round.number, named, step)
    advance(1)

  log = metrics.StepLog(write)
  with contextlib.closing(checkpoint.Steps(run.workdir.steps(round.number))) as saved:
    state, first = _resume(run, round, start, opt_state, saved, log)
    is_last = _drift(run, state) >= limit
    steps = () if is_last else run.trainer.steps(state, rows, exp.seed, round.number, first)
    numbers = range(first, num_steps)
    for step in metrics.profiled(steps, numbers, exp.profile, run.workdir.path, log.flush):
      state = step.state
      drift = _drift(run, state)
      log.add(step.metrics | ({'drift_norm': drift} if exp.finetune.max_drift else {}))
      is_last = step.number == num_steps or drift >= limit
      is_due = step.number % every == 0 or (is_last and every < np.inf)
      must_stop = processes.should_stop()
      if is_due or must_stop:
        log.flush()
        trees = {'params': state.params, 'opt_state': state.opt_state}
        saved.save(step.number, trees, {'history': log.steps})
      if must_stop:
        raise processes.Stopped
      if is_last:
        break
    log.flush()
  return state, log.steps


def _resume(
  run: Run,
  round: Round,
  start: Params,
  opt_state: Any,
  saved: checkpoint.Steps,
  log: metrics.StepLog,
) -> tuple[finetune.TrainState, int]:
  """Returns the state to train on from, and the number of steps it has taken, which are logged."""
  abstract = run.trainer.abstract()
  trees = {'params': abstract.params, 'opt_state': abstract.opt_state}
  found = saved.restore(trees, report=console.note)
  if found is None:
    return run.trainer.init(start, opt_state, round.key), 0
  num_done, trees, history = found
  log.replay(history['history'])
  return run.trainer.resume(start, **trees), num_done


def _check_finite(round: Round, step: int, values: Mapping[str, float]) -> None:
  """Raises ValueError when a step's loss or gradient norm is not finite.

  Training cannot recover from such a step.
  """
  for name in ('loss_nats', 'grad_norm'):
    if not math.isfinite(values[name]):
      elsewhere = ' and another workdir' if round.number > 1 else ''
      raise ValueError(
        f'round {round.number}: {name} of fine-tuning step {step} is {values[name]}, at learning'
        f' rate {values["learning_rate"]:.1e}; choose a lower optimizer.learning_rate{elsewhere}'
      )


def _drift(run: Run, state: finetune.TrainState) -> float:
  """Returns the distance of the params from the original model; 0 without finetune.max_drift.

  The host waits for the value.
  """
  return (
    float(merging.drift_norm(run.lm.params, state.params)) if run.exp.finetune.max_drift else 0.0
  )


def merge(
  run: Run, round: Round, state: RunState, tuned: Tuned, samples: Sequence[Sample]
) -> RunState:
  """Merges the tuned params with the anchor; returns the state that the next round starts from."""
  exp = run.exp
  with round.phase('merge'):
    alpha, found = alphas.choose(run, round, state, tuned.params, samples)
    params = run.merge(state.anchor, tuned.params, alpha, round.key)
    drift = float(merging.drift_norm(state.base, params))
    if not math.isfinite(drift):
      raise ValueError(
        f'round {round.number}: the merged params are not finite; choose another merge or learning'
        ' rate'
      )
    round.summary.merge = {'method': exp.merge.method, **found, 'drift_norm': drift}
    return RunState(
      base=state.base,
      params=params,
      anchor=rules.next_anchor(exp.merge.anchor, state.anchor, params, round.number),
      sample_params=tuned.params if exp.sample_from == 'tuned' else params,
      opt_state=tuned.opt_state,
    )


def evaluate(run: Run, round: Round, params: Params, which: str = 'merged') -> None:
  """Measures params in and out of domain, task by task, into the round's summary and answers."""
  with round.phase('evaluate' if which == 'merged' else f'evaluate_{which}'):
    state = State(round.number, which)
    console.note(f'evaluate {state.name}')
    lm = dataclasses.replace(run.lm, params=params).to_sample()

    def part(name: str, compute: Callable[[], Any]) -> Any:
      return round.part(f'evaluate-{which}-{name}', compute)

    results = {'id': {}, 'ood': {}}
    for domain, task, result, answers in measure(run.exp, lm, round.key, part):
      results[domain][task] = result
      round.answers += [Answer.from_json({'params': which, **answer}) for answer in answers]
    for domain, found in results.items():
      setattr(round.summary, state.key(domain), found)
    console.note(f'{state.name}: {_accuracies(results)} % right')
    if run.exp.evaluate.text_source:
      setattr(round.summary, state.key('text'), part('text', lambda: text_nll(run.exp, lm)))


def measure(
  exp: Experiment, lm: LM, key: jax.Array, part: Callable[[str, Callable[[], Any]], Any]
) -> Iterator[tuple[str, str, dict[str, float], list[dict[str, Any]]]]:
  """Yields (domain, task, result, answers) of each task, as soon as it is measured.

  `lm` is ready to sample. part(name, compute) returns compute(), or its value from an earlier
  process.
  """
  for domain, tasks in (('id', exp.id_tasks), ('ood', exp.ood_tasks)):
    for name, task in tasks.items():
      compute = functools.partial(
        evaluation.evaluate,
        lm.model,
        lm.params,
        lm.tokenizer,
        {name: task},
        exp.evaluate,
        exp.sampler,
        key=key,
      )
      results, answers = part(name, compute)
      yield domain, name, results[name], answers


def text_nll(exp: Experiment, lm: LM) -> dict[str, float]:
  """Returns the likelihood of evaluate.text_source."""
  return evaluation.text_nll(lm.model, lm.params, lm.tokenizer, exp.evaluate, exp.sampler.num_slots)


def _accuracies(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
  texts = []
  for domain, of_domain in results.items():
    for name, result in of_domain.items():
      texts.append(f'{domain.upper()} {name} {100 * result["accuracy"]:.1f}')
  return ', '.join(texts)
