"""Iterative Model Merging (arXiv 2503.02103): the rounds.

theta_0 is the original model and M_0 = theta_0. In round t the model samples solutions and a verifier keeps the right ones,
fine-tuning on them gives S_t, and M_t = merge(theta_0, S_t) starts the next round. The method's switches, and the baselines
that they make, are in docs/configs.md.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp

from imm_jax import console, evaluate, formats, merging, processes, sharding
from imm_jax import lm as lm_lib
from imm_jax.formats import checkpoint
from imm_jax.formats.at_round import source_of
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.lm import LM
from imm_jax.models import transformer
from imm_jax.models.transformer import Params
from imm_jax.rounds import experiment, metrics, phases, synthesize, weights
from imm_jax.rounds.experiment import Experiment
from imm_jax.rounds.workdir import Workdir
from imm_jax.tasks import Task
from imm_jax.training import finetune


def run(
  config: Mapping[str, Any], path: str, after_round: Callable[[str], None] = lambda path: None
) -> list[dict[str, Any]]:
  """Runs the rounds of an experiment in a workdir, or what is left of them; returns a row a round.

  All processes of a run call it alike; see processes.join. Process 0 calls after_round(path) when a round is done.

  Raises:
    ValueError: the config is wrong, or the workdir belongs to another one; the key and the fix are named.
    OSError: a file cannot be read or written.
    processes.Stopped: a notice to stop has come; the same call goes on.
  """
  exp, workdir = experiment.resolve(config), Workdir(path)
  beside = epath.Path(workdir.path).parent / '.xla_cache'
  cache = exp.compilation_cache or os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(beside)
  jax.config.update('jax_compilation_cache_dir', cache)
  mesh = exp.mesh.make()
  questions = {name: describe(exp, task) for name, task in exp.all_tasks.items()}
  exp.check_questions()
  for line in workdir.open(config):
    console.note(line)
  if len(workdir.finished()) > exp.num_rounds:
    processes.on_first(lambda: after_round(workdir.path))
    return workdir.finished()
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    lm, state = load_state(exp, workdir, mesh)
    base_params, params, sample_params, moments = lm.params, state.params, state.sample_params, state.moments
    first_round = len(workdir.finished())
    check_teacher(exp, lm)
    anchor = weights.first_anchor(exp, workdir, lm, params, first_round)
    merge = weights.make_merge(exp, lm)
    lines = [line for round_ in range(first_round) for line in workdir.read_lines(round_, 'metrics.jsonl')]
    asked = {'tensorboard': exp.tensorboard, 'logger': exp.logger, 'writes': processes.is_first()}
    writer = stack.enter_context(contextlib.closing(metrics.Writer(workdir.path, lines, **asked)))

    for round_ in range(first_round, exp.num_rounds + 1):
      entry, answers = phases.Entry(round_), []
      part = functools.partial(workdir.part, round_, report=console.note)
      if round_ == 0:
        entry.values['tasks'] = questions
        console.note('round 0: the original model')
      key = jax.random.fold_in(jax.random.key(exp.seed), round_)
      if round_ > 0:
        console.note(f'round {round_} of {exp.num_rounds}')
        with entry.phase('sample'):
          records = phases.sample(exp, lm, sampling_lm(exp, lm, sample_params), round_, key, part)
          workdir.write_lines(round_, 'samples.jsonl', records)
          entry.values['sample'] = synthesize.summary(records)
          console.note('{num_samples} samples; {num_accepted} pairs to learn from'.format(**entry.values['sample']))
        with entry.phase('finetune'), contextlib.closing(checkpoint.Steps(workdir.steps(round_))) as saved:
          start = base_params if exp.finetune_from == 'base' else params
          if start is base_params or start is anchor:  # needed again, and fine-tuning donates where it starts
            start = jax.tree.map(jnp.copy, start)
          tuned_params, moments, entry.values['finetune'] = phases.fine_tune(
            exp, lm, start, moments, earlier_records(exp, workdir, round_) + records, round_, writer, saved
          )
        if exp.evaluate.tuned:
          with entry.phase('evaluate_tuned'):
            answers += phases.evaluate_domains(exp, lm, tuned_params, key, entry, 'tuned', part)
        with entry.phase('merge'):
          first = workdir.finished()[1]['merge'] if round_ > 1 else None
          alpha, row = weights.choose(
            exp, lm, merge, anchor, tuned_params, records, round_=round_, key=key, part=part, first=first
          )
          params = merge(anchor, tuned_params, alpha, key)
          sample_params = tuned_params if exp.sample_from == 'tuned' else params
          anchor = weights.next_anchor(exp.merge.anchor, anchor, params, round_)
          drift = float(merging.drift_norm(base_params, params))
          entry.values['merge'] = {'method': exp.merge.method, **row, 'drift_norm': drift}
      with entry.phase('evaluate'):
        answers += phases.evaluate_domains(exp, lm, params, key, entry, 'merged', part)
        workdir.write_lines(round_, 'evaluations.jsonl', answers)
      with entry.phase('checkpoint'):
        trees = {'params': params} | ({'tuned': sample_params} if exp.sample_from == 'tuned' else {})
        trees |= {'moments': moments} if moments is not None else {}
        checkpoint.save(workdir.checkpoint(round_), trees)
      writer.write(round_, entry.scalars())
      workdir.write_lines(round_, 'metrics.jsonl', writer.of_round(round_))
      writer.flush()  # a finished run writes nothing more
      workdir.finish(entry.values)
      processes.on_first(lambda: after_round(workdir.path))
  return workdir.finished()


def check_teacher(exp: Experiment, lm: LM) -> None:
  """Raises ValueError when the teacher's samples could not be learned from: its tokens are not those of lm."""
  if exp.synthesize.teacher:
    tokenizer = formats.load_tokenizer(source_of(exp.synthesize.teacher))
    lm.tokenizer.check_same(tokenizer, f'synthesize.teacher: {exp.synthesize.teacher}')


def sampling_lm(exp: Experiment, lm: LM, params: Params) -> LM:
  """Returns the model that a round's completions come from: the teacher, loaded for this round's only, or lm with params."""
  if exp.synthesize.teacher:
    return load_model(exp, exp.synthesize.teacher, lm.mesh)
  return dataclasses.replace(lm, params=params)


def earlier_records(exp: Experiment, workdir: Workdir, round_: int) -> list[dict[str, Any]]:
  """Returns what a round learns from beside its own samples: with synthesize.data 'accumulate' the records of all before it.

  A completion that is accepted in several rounds counts as often.
  """
  rounds = range(1, round_) if exp.synthesize.data == 'accumulate' else ()
  return [record for earlier in rounds for record in workdir.read_lines(earlier, 'samples.jsonl')]


class State(NamedTuple):
  """What a round starts from."""

  params: Params
  sample_params: Params
  moments: Any


def load_state(exp: Experiment, workdir: Workdir, mesh: jax.sharding.Mesh) -> tuple[LM, State]:
  """Returns the original model and what the next round starts from: the newest round whose arrays are whole.

  Those that are not are set aside, to be done again. Raises ValueError when that is round 0, and later ones build on it.
  """
  while True:
    done = len(workdir.finished())
    try:
      lm = load_base(exp, workdir, mesh, done)
      if done < 2:
        return lm, State(lm.params, lm.params, None)
      params = lm_lib.restore(workdir.path, done - 1, 'params', lm)
      sample_params = params if exp.sample_from == 'merged' else lm_lib.restore(workdir.path, done - 1, 'tuned', lm)
      moments = None
      if exp.optimizer.keep_moments:
        moments = finetune.restore_moments(workdir.checkpoint(done - 1), lm.model, exp.optimizer, mesh)
      return lm, State(params, sample_params, moments)
    except checkpoint.Damaged as error:
      if done == 0 or (done > 1 and error.path == workdir.checkpoint(0)):
        raise ValueError(f'{error}; restore it, or choose another workdir') from error
      console.note(f'{error}; its round is done again')
      processes.on_first(functools.partial(workdir.set_aside, done - 1))


def describe(exp: Experiment, task: Task) -> dict[str, int]:
  """Returns how many questions a task has, which reads them, and says so."""
  num_train = len(exp.train_questions(task))
  num_dropped = task.num_dropped + len(task.train) - num_train
  counts = {'num_train': num_train, 'num_test': len(task.test), 'num_dropped': num_dropped}
  console.note('{}: {} train and {} test questions; {} duplicates dropped'.format(task.name, *counts.values()))
  return counts


def load_base(exp: Experiment, workdir: Workdir, mesh: jax.sharding.Mesh, first_round: int) -> LM:
  """Returns the original model: from where the config says, or, when the run has begun, from its round 0."""
  if first_round > 0:
    return load_model(exp, f'{workdir.path}@0', mesh)
  lm = load_model(exp, exp.model.path, mesh)
  processes.on_first(lambda: workdir.write_model(functools.partial(save_model, lm=lm)))
  return lm


def save_model(path: str, lm: LM) -> None:
  """Writes the config and the tokenizer of a model, not its weights."""
  formats.hf.save_config(path, lm.config)
  lm.tokenizer.save(path)


def load_model(exp: Experiment, path: str, mesh: jax.sharding.Mesh) -> LM:
  """Returns the model at path, or for '' the config's random one, sharded for training."""
  if path:
    spec = exp.model
    return lm_lib.load(path, dtype=spec.dtype, remat=spec.remat, attention=spec.attention, mesh=mesh, rules=sharding.TRAIN)
  return random_lm(exp, mesh)


def random_lm(exp: Experiment, mesh: jax.sharding.Mesh) -> LM:
  """Returns the model of the config's `model.random`."""
  assert exp.model.random is not None
  tokenizer, config = Tokenizer.from_characters(exp.model.random.characters), experiment.random_config(exp.model, mesh)
  return LM(config, transformer.init_params(config, exp.model.random.seed, mesh), tokenizer, mesh, sharding.TRAIN)


def load_to_sample(config: Mapping[str, Any]) -> LM:
  """Returns config.model.path on the config's mesh, ready to sample and to score."""
  exp = experiment.resolve(config)
  return load_model(exp, exp.model.path, exp.mesh.make()).to_sample()


def evaluate_only(
  config: Mapping[str, Any], after_task: Callable[[Mapping[str, Any]], None] = lambda row: None
) -> dict[str, Any]:
  """Returns a row with the accuracies of config.model.path on the config's tasks.

  Every task is read, and every prompt's length checked, before the model is loaded.

  Args:
    config: of the experiment.
    after_task: called after each task with the row, which has the tasks that are measured so far.

  Raises:
    ValueError: the config or a task's data are wrong, or a prompt is too long.
    OSError: a file cannot be read, or a verifier does not work here.
  """
  exp = experiment.resolve(config)
  exp.check_verifiers()
  mesh = exp.mesh.make()
  domains = {'id': exp.id_tasks, 'ood': exp.ood_tasks}
  check_lengths(exp, [task for tasks in domains.values() for task in tasks.values()], mesh)
  row = phases.Entry(0).values | {domain: {} for domain in domains}
  with jax.set_mesh(mesh):
    lm = load_model(exp, exp.model.path, mesh).to_sample()
    for domain, tasks in domains.items():
      for name, task in tasks.items():
        result, _ = evaluate.evaluate(
          lm.model, lm.params, lm.tokenizer, {name: task}, exp.evaluate, exp.sampler, key=jax.random.key(exp.seed)
        )
        row[domain] |= result
        console.note(f'{domain.upper()} {name}: {100 * result[name]["accuracy"]:.1f} % right')
        after_task(row)
    if exp.evaluate.text_source:
      row['text'] = evaluate.text_nll(lm.model, lm.params, lm.tokenizer, exp.evaluate, exp.sampler.num_slots)
      after_task(row)
  return row


def check_lengths(exp: Experiment, tasks: Sequence[Task], mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError when a test question does not fit the context of the config's model, or a task cannot be read."""
  max_length = experiment.read_config(exp.model, mesh).max_length
  if exp.model.path:
    tokenizer = formats.load_tokenizer(source_of(exp.model.path))
  else:
    assert exp.model.random is not None
    tokenizer = Tokenizer.from_characters(exp.model.random.characters)
  for task in tasks:
    evaluate.check_lengths(tokenizer, max_length, task, task.test)
