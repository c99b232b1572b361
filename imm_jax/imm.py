"""Iterative Model Merging (arXiv 2503.02103): the rounds.

theta_0 is the original model and M_0 = theta_0. In round t the model samples solutions and a verifier keeps the right ones,
fine-tuning on them gives S_t, and M_t = merge(theta_0, S_t) starts the next round. `sample_from`, `finetune_from` and
`merge.anchor` are the method's switches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
import time
from typing import Any

import jax
import jax.numpy as jnp

from imm_jax import (
  checkpoint,
  evaluate,
  experiment,
  finetune,
  formats,
  merging,
  metrics,
  packing,
  sampler,
  sharding,
  synthesize,
)
from imm_jax import lm as lm_lib
from imm_jax import model as model_lib
from imm_jax.experiment import Experiment
from imm_jax.lm import LM
from imm_jax.merging import coefficients
from imm_jax.model import Params, Transformer
from imm_jax.tasks import Task
from imm_jax.tokenizer import Tokenizer
from imm_jax.workdir import Workdir


def run(config: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
  """Runs the rounds of an experiment in a workdir, or what is left of them; returns a row a round.

  Raises:
    ValueError: the config is wrong, or the workdir belongs to another one; the key and the fix are named.
    OSError: a file cannot be read or written.
  """
  exp, workdir = experiment.resolve(config), Workdir(path)
  cache = exp.compilation_cache or os.path.join(os.path.dirname(workdir.path), '.xla_cache')
  jax.config.update('jax_compilation_cache_dir', cache)
  mesh = sharding.make_mesh(**dataclasses.asdict(exp.mesh))
  questions = {name: describe(task) for name, task in (exp.id_tasks | exp.ood_tasks).items()}
  first_round = workdir.open(config)
  if first_round > exp.num_rounds:
    return workdir.finished()
  with jax.set_mesh(mesh), contextlib.closing(metrics.Writer(workdir.path, first_round, exp.tensorboard)) as writer:
    lm = load_base(exp, workdir, mesh, first_round)
    base_params, params, sample_params, moments = lm.params, lm.params, lm.params, None
    if first_round > 1:
      params = lm_lib.restore(workdir, first_round - 1, 'params', lm)
      sample_params = params if exp.sample_from == 'merged' else lm_lib.restore(workdir, first_round - 1, 'tuned', lm)
      if exp.optimizer.keep_moments:
        moments = finetune.restore_moments(workdir.checkpoint(first_round - 1), trainer(lm), exp.optimizer, mesh)
    anchor = first_anchor(exp, workdir, lm, params, first_round)
    merge = make_merge(exp, lm)

    for round_ in range(first_round, exp.num_rounds + 1):
      entry, answers = Entry(round_), []
      if round_ == 0:
        entry.values['tasks'] = questions
        metrics.note('round 0: the original model')
      key = jax.random.fold_in(jax.random.key(exp.seed), round_)
      if round_ > 0:
        metrics.note(f'round {round_} of {exp.num_rounds}')
        with entry.phase('sample'):
          records = workdir.read_lines(round_, 'samples.jsonl')
          if records is None:
            records = sample(exp, lm, sample_params, key)
            workdir.write_lines(round_, 'samples.jsonl', records)
          entry.values['sample'] = synthesize.summary(records)
          metrics.note('{num_samples} samples, {num_accepted} accepted to learn from'.format(**entry.values['sample']))
        with entry.phase('finetune'):
          start = base_params if exp.finetune_from == 'base' else params
          if start is base_params or start is anchor:  # needed again, and fine-tuning donates where it starts
            start = jax.tree.map(jnp.copy, start)
          tuned_params, moments, entry.values['finetune'] = fine_tune(exp, lm, start, moments, records, round_, writer)
        if exp.evaluate.tuned:
          with entry.phase('evaluate_tuned'):
            answers += evaluate_domains(exp, lm, tuned_params, key, entry, 'tuned')
        with entry.phase('merge'):
          params = merge(anchor, tuned_params, round_, key)
          sample_params = tuned_params if exp.sample_from == 'tuned' else params
          anchor = next_anchor(exp.merge.anchor, anchor, params, round_)
          drift = float(drift_norm(base_params, params))
          alpha = coefficients.schedule(exp.merge.alpha, round_)
          entry.values['merge'] = {'method': exp.merge.method, 'alpha': alpha, 'drift_norm': drift}
      with entry.phase('evaluate'):
        answers += evaluate_domains(exp, lm, params, key, entry, 'merged')
        workdir.write_lines(round_, 'evaluations.jsonl', answers)
      with entry.phase('checkpoint'):
        trees = {'params': params} | ({'tuned': sample_params} if exp.sample_from == 'tuned' else {})
        trees |= {'moments': moments} if moments is not None else {}
        checkpoint.save(workdir.checkpoint(round_), trees)
      writer.write(round_, entry.scalars())
      workdir.finish(entry.values)
  return workdir.finished()


@dataclasses.dataclass
class Entry:
  """A round's row of the summary, filled phase by phase."""

  round_: int

  def __post_init__(self):
    self.values: dict[str, Any] = {'round': self.round_, 'secs': {}}

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Times a phase."""
    start = time.monotonic()
    yield
    self.values['secs'][name] = round(time.monotonic() - start, 3)

  def scalars(self) -> dict[str, float]:
    """Returns the row as flat metrics `<phase>/<name>`."""
    flat = {}
    for phase, name in (('id', 'eval'), ('ood', 'eval'), ('tuned_id', 'eval_tuned'), ('tuned_ood', 'eval_tuned')):
      for task, result in self.values.get(phase, {}).items():
        flat |= {f'{name}/{task}/{key}': value for key, value in result.items() if key == 'accuracy' or '@' in key}
    for phase in ('sample', 'merge'):
      numbers = {key: value for key, value in self.values.get(phase, {}).items() if isinstance(value, int | float)}
      flat |= {f'{phase}/{key}': value for key, value in numbers.items()}
    return flat | {f'{phase}/secs': value for phase, value in self.values['secs'].items()}


def describe(task: Task) -> dict[str, int]:
  """Returns how many questions a task has, which reads them, and says so."""
  counts = {'num_train': len(task.train), 'num_test': len(task.test), 'num_dropped': task.num_dropped}
  metrics.note('{}: {} train and {} test questions; {} duplicates dropped'.format(task.name, *counts.values()))
  return counts


def sample(exp: Experiment, lm: LM, params: Params, key: jax.Array) -> list[dict[str, Any]]:
  """Returns a record for each completion of the round's questions; see synthesize.accept."""
  model, on_sampler = for_sampling(lm, params)
  records = []
  for name, task in exp.id_tasks.items():
    examples = task.train[: exp.synthesize.num_questions or None]
    prompts = [lm.tokenizer.encode_prompt(task.prompt(example, task.shots)) for example in examples]
    with metrics.progress(f'sample {name}', len(prompts) * exp.sampler.num_samples_per_prompt, 'completions') as advance:
      completions = sampler.sample(
          model, on_sampler, lm.tokenizer, prompts, exp.sampler, key=key, max_new_tokens=task.max_new_tokens,
          ids=[example.id for example in examples], stop=task.stop, advance=advance,
      )  # fmt: skip
    records += synthesize.accept(
      examples,
      completions,
      task.verify,
      prompts=[lm.tokenizer.encode_prompt(task.prompt(example)) for example in examples],
      max_length=exp.finetune.max_length,
      max_accepted_per_question=exp.synthesize.max_accepted_per_question,
    )
  return records


def fine_tune(
  exp: Experiment,
  lm: LM,
  params: Params,
  moments: Any,
  records: Sequence[Mapping[str, Any]],
  round_: int,
  writer: metrics.Writer,
) -> tuple[Params, Any, dict[str, float]]:
  """Returns params, which are donated, fine-tuned on the accepted records, the moments to keep, and what to say of it."""
  prompts = {example.id: task.prompt(example) for task in exp.id_tasks.values() for example in task.train}
  accepted = [record for record in records if record['accepted']]
  pairs = [(lm.tokenizer.encode_prompt(prompts[record['question_id']]), record['tokens']) for record in accepted]
  rows = packing.pack(pairs, exp.finetune.max_length)
  history = []
  with metrics.progress(f'fine-tune on {len(pairs)} samples', finetune.num_steps(rows, exp.finetune), 'steps') as advance:

    def write(step: int, values: Mapping[str, float]) -> None:
      history.append(values)
      writer.write(round_, {f'finetune/{name}': value for name, value in values.items()}, step)
      advance(1)

    params, moments = finetune.fine_tune(
        trainer(lm), params, rows, exp.finetune, exp.optimizer, lm.mesh, seed=exp.seed, round_=round_, write=write,
        moments=moments,
    )  # fmt: skip
  tokens = sum(values['num_tokens'] for values in history)
  loss = sum(values['loss_nats'] * values['num_tokens'] for values in history) / tokens
  kept = moments if exp.optimizer.keep_moments else None
  return params, kept, {'steps': len(history), 'tokens': int(tokens), 'loss_nats': loss}


def trainer(lm: LM) -> Transformer:
  """Returns the model as fine-tuning shards it."""
  return Transformer(lm.config, sharding.TRAIN)


def evaluate_domains(
  exp: Experiment, lm: LM, params: Params, key: jax.Array, entry: Entry, which: str
) -> list[dict[str, Any]]:
  """Measures params in and out of domain, into the entry; returns a record for each answer."""
  metrics.note(f'evaluate the {which} params')
  model, on_sampler = for_sampling(lm, params)
  answers, prefix = [], 'tuned_' if which == 'tuned' else ''
  for domain, domain_tasks in (('id', exp.id_tasks), ('ood', exp.ood_tasks)):
    entry.values[prefix + domain], items = evaluate.evaluate(
      model, on_sampler, lm.tokenizer, domain_tasks, exp.evaluate, exp.sampler, key=key
    )
    answers += [{'params': which, **item} for item in items]
  return answers


def for_sampling(lm: LM, params: Params) -> tuple[Transformer, Params]:
  """Returns the model, and params as sampling shards them and in the compute dtype: a decode step reads each of them once.

  Where both are as in training, nothing moves.
  """
  model = Transformer(lm.config, sharding.SAMPLE)
  if lm.config.dtype == 'float32':
    return model, jax.device_put(params, model_lib.param_shardings(lm.config, lm.mesh, sharding.SAMPLE))
  return model, sampler.make_cast(model, lm.mesh)(params)  # pyright: ignore[reportArgumentType]


def make_merge(exp: Experiment, lm: LM) -> Callable[[Params, Params, int, jax.Array], Params]:
  """Returns merge(anchor, tuned, round_, key) -> params, compiled once; key seeds the masks.

  tuned is donated, unless the next round samples from it.
  """
  shardings = model_lib.param_shardings(lm.config, lm.mesh, sharding.TRAIN)
  jitted = merging.make_merge(exp.merge, shardings, donates=exp.sample_from != 'tuned')

  def merge(anchor, tuned, round_, key):
    alpha = coefficients.schedule(exp.merge.alpha, round_)
    return jitted(anchor, tuned, None if coefficients.varies(alpha) else jnp.float32(alpha), key)

  return merge


def first_anchor(exp: Experiment, workdir: Workdir, lm: LM, params: Params, first_round: int) -> Params:
  """Returns what the next round merges with: the original, the newest params, or the mean of those of all rounds so far."""
  anchor = params if exp.merge.anchor == 'previous' else lm.params
  for round_ in range(1, first_round if exp.merge.anchor == 'all_previous' else 0):
    anchor = next_anchor('all_previous', anchor, lm_lib.restore(workdir, round_, 'params', lm), round_)
  return anchor


def next_anchor(which: str, anchor: Params, params: Params, round_: int) -> Params:
  """Returns the anchor after a round; for 'all_previous' the mean of round_ + 1 params, from that of round_ of them."""
  if which == 'all_previous':
    return running_mean(anchor, params, jnp.float32(round_ + 1))
  return params if which == 'previous' else anchor


@jax.jit
def running_mean(mean: Params, params: Params, n: jax.Array) -> Params:
  """Returns the mean of n trees, given that of the first n - 1 and the last."""
  return jax.tree.map(lambda m, p: m + (p - m) / n, mean, params)


@jax.jit
def drift_norm(base: Params, params: Params) -> jax.Array:
  """Returns ‖params - base‖ / ‖base‖ over all parameters, [] f32."""
  squares = jax.tree.map(lambda b, p: (jnp.sum((p - b) ** 2), jnp.sum(b**2)), base, params)
  moved, size = zip(*jax.tree.leaves(squares, is_leaf=lambda leaf: isinstance(leaf, tuple)), strict=True)
  return jnp.sqrt(sum(moved) / sum(size))


def load_base(exp: Experiment, workdir: Workdir, mesh: jax.sharding.Mesh, first_round: int) -> LM:
  """Returns the original model: from where the config says, or, when the run has begun, from its round 0."""
  if first_round > 0:
    return load_model(exp, f'{workdir.path}@0', mesh)
  lm = load_model(exp, exp.model.path, mesh)
  os.makedirs(workdir.model, exist_ok=True)
  formats.hf.save_config(workdir.model, lm.config)
  lm.tokenizer.save(workdir.model)
  return lm


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
  return LM(config, model_lib.init_params(config, exp.model.random.seed, mesh), tokenizer, mesh, sharding.TRAIN)


def evaluate_only(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row with the accuracies of config.model.path on the config's tasks."""
  exp = experiment.resolve(config)
  mesh, entry = sharding.make_mesh(**dataclasses.asdict(exp.mesh)), Entry(0)
  with jax.set_mesh(mesh):
    lm = load_model(exp, exp.model.path, mesh)
    evaluate_domains(exp, lm, lm.params, jax.random.key(exp.seed), entry, 'merged')
  return entry.values
