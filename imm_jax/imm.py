"""Iterative Model Merging (arXiv 2503.02103): the rounds.

theta_0 is the original model and M_0 = theta_0. In round t the model samples solutions and a verifier keeps the right ones,
fine-tuning on them gives S_t, and M_t = merge(theta_0, S_t) starts the next round. `sample_from`, `finetune_from` and
`merge.anchor` are the method's switches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import time
from typing import Any, NamedTuple
import zlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import (
  checkpoint,
  evaluate,
  experiment,
  finetune,
  formats,
  merging,
  metrics,
  packing,
  processes,
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
from imm_jax.tasks import Example, Task
from imm_jax.tokenizer import Tokenizer
from imm_jax.workdir import Workdir

Part = Callable[[str, Callable[[], Any]], Any]  # Workdir.part: a part of a round, by its name, is computed once


def run(config: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
  """Runs the rounds of an experiment in a workdir, or what is left of them; returns a row a round.

  All processes of a run call it alike; see processes.join.

  Raises:
    ValueError: the config is wrong, or the workdir belongs to another one; the key and the fix are named.
    OSError: a file cannot be read or written.
    processes.Stopped: a notice to stop has come; the same call goes on.
  """
  exp, workdir = experiment.resolve(config), Workdir(path)
  cache = exp.compilation_cache or str(epath.Path(workdir.path).parent / '.xla_cache')
  jax.config.update('jax_compilation_cache_dir', cache)
  mesh = sharding.make_mesh(**dataclasses.asdict(exp.mesh))
  questions = {name: describe(task) for name, task in (exp.id_tasks | exp.ood_tasks).items()}
  for line in workdir.open(config):
    metrics.note(line)
  if len(workdir.finished()) > exp.num_rounds:
    return workdir.finished()
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    lm, state = load_state(exp, workdir, mesh)
    base_params, params, sample_params, moments = lm.params, state.params, state.sample_params, state.moments
    first_round = len(workdir.finished())
    anchor = first_anchor(exp, workdir, lm, params, first_round)
    merge = make_merge(exp, lm)
    lines = [line for round_ in range(first_round) for line in workdir.read_lines(round_, 'metrics.jsonl')]
    writer = stack.enter_context(
      contextlib.closing(metrics.Writer(workdir.path, lines, tensorboard=exp.tensorboard, writes=processes.is_first()))
    )

    for round_ in range(first_round, exp.num_rounds + 1):
      entry, answers = Entry(round_), []
      part = functools.partial(workdir.part, round_, report=metrics.note)
      if round_ == 0:
        entry.values['tasks'] = questions
        metrics.note('round 0: the original model')
      key = jax.random.fold_in(jax.random.key(exp.seed), round_)
      if round_ > 0:
        metrics.note(f'round {round_} of {exp.num_rounds}')
        with entry.phase('sample'):
          records = sample(exp, lm, sample_params, round_, key, part)
          workdir.write_lines(round_, 'samples.jsonl', records)
          entry.values['sample'] = synthesize.summary(records)
          metrics.note('{num_samples} samples, {num_accepted} accepted to learn from'.format(**entry.values['sample']))
        with entry.phase('finetune'), contextlib.closing(checkpoint.Steps(workdir.steps(round_))) as saved:
          start = base_params if exp.finetune_from == 'base' else params
          if start is base_params or start is anchor:  # needed again, and fine-tuning donates where it starts
            start = jax.tree.map(jnp.copy, start)
          tuned_params, moments, entry.values['finetune'] = fine_tune(
            exp, lm, start, moments, records, round_, writer, saved
          )
        if exp.evaluate.tuned:
          with entry.phase('evaluate_tuned'):
            answers += evaluate_domains(exp, lm, tuned_params, key, entry, 'tuned', part)
        with entry.phase('merge'):
          params = merge(anchor, tuned_params, round_, key)
          sample_params = tuned_params if exp.sample_from == 'tuned' else params
          anchor = next_anchor(exp.merge.anchor, anchor, params, round_)
          drift = float(drift_norm(base_params, params))
          alpha = coefficients.schedule(exp.merge.alpha, round_)
          entry.values['merge'] = {'method': exp.merge.method, 'alpha': alpha, 'drift_norm': drift}
      with entry.phase('evaluate'):
        answers += evaluate_domains(exp, lm, params, key, entry, 'merged', part)
        workdir.write_lines(round_, 'evaluations.jsonl', answers)
      with entry.phase('checkpoint'):
        trees = {'params': params} | ({'tuned': sample_params} if exp.sample_from == 'tuned' else {})
        trees |= {'moments': moments} if moments is not None else {}
        checkpoint.save(workdir.checkpoint(round_), trees)
      writer.write(round_, entry.scalars())
      workdir.write_lines(round_, 'metrics.jsonl', writer.of_round(round_))
      writer.flush()  # a finished run writes nothing more
      workdir.finish(entry.values)
  return workdir.finished()


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
      params = lm_lib.restore(workdir, done - 1, 'params', lm)
      sample_params = params if exp.sample_from == 'merged' else lm_lib.restore(workdir, done - 1, 'tuned', lm)
      moments = None
      if exp.optimizer.keep_moments:
        moments = finetune.restore_moments(workdir.checkpoint(done - 1), trainer(lm), exp.optimizer, mesh)
      return lm, State(params, sample_params, moments)
    except checkpoint.Damaged as error:
      if done == 0 or (done > 1 and error.path == workdir.checkpoint(0)):
        raise ValueError(f'{error}; restore it, or choose another workdir') from error
      metrics.note(f'{error}; its round is done again')
      processes.on_first(functools.partial(workdir.set_aside, done - 1))


@dataclasses.dataclass
class Entry:
  """A round's row of the summary, filled phase by phase."""

  round_: int

  def __post_init__(self):
    self.values: dict[str, Any] = {'round': self.round_, 'secs': {}}

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


def sample(exp: Experiment, lm: LM, params: Params, round_: int, key: jax.Array, part: Part) -> list[dict[str, Any]]:
  """Returns a record for each completion of the round's questions, and each real solution that takes a sample's place."""
  fraction, records = exp.synthesize.real_fraction, []
  model, on_sampler = for_sampling(lm, params)
  for task in exp.id_tasks.values():
    examples = task.train[: exp.synthesize.num_questions or None]
    sampled = [] if fraction == 1 else sample_task(exp, lm, model, on_sampler, task, examples, key, part)
    if fraction:
      solutions = accept(exp, lm, task, examples, [[synthesize.solution(task, e, lm.tokenizer)] for e in examples])
      rng = np.random.default_rng((exp.seed, round_, zlib.crc32(f'real/{task.name}'.encode())))
      sampled = synthesize.mix(sampled, solutions, fraction, rng)
    records += sampled
  return records


def accept(
  exp: Experiment, lm: LM, task: Task, examples: Sequence[Example], completions: Sequence[Sequence[sampler.Completion]]
) -> list[dict[str, Any]]:
  """Returns a record for each completion; see synthesize.accept."""
  return synthesize.accept(
    examples,
    completions,
    task.verify,
    prompts=[lm.tokenizer.encode_prompt(task.prompt(example)) for example in examples],
    max_length=exp.finetune.max_length,
    max_accepted_per_question=exp.synthesize.max_accepted_per_question,
  )


def sample_task(
  exp: Experiment, lm: LM, model: Transformer, params: Params, task: Task, examples: Sequence[Example], key: jax.Array,
  part: Part,
) -> list[dict[str, Any]]:  # fmt: skip
  """Returns the records of one task's examples, sampled chunk by chunk; model and params are those for sampling."""
  prompts = [lm.tokenizer.encode_prompt(task.prompt(example, task.shots)) for example in examples]
  total, size = len(prompts) * exp.sampler.num_samples_per_prompt, exp.synthesize.questions_per_chunk
  with metrics.progress(f'sample {task.name}', total, 'completions') as advance:

    def chunk(chosen: slice) -> list[dict[str, Any]]:
      completions = sampler.sample(
          model, params, lm.tokenizer, prompts[chosen], exp.sampler, key=key, max_new_tokens=task.max_new_tokens,
          ids=[example.id for example in examples[chosen]], stop=task.stop, among=prompts, advance=advance,
      )  # fmt: skip
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
) -> tuple[Params, Any, dict[str, float]]:
  """Returns params, which are donated, fine-tuned on the accepted records, the moments to keep, and what to say of it.

  It goes on from the newest of the checkpoints in `saved`, and adds to them.
  """
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
        moments=moments, saved=saved, save_every=exp.checkpoint.every_steps, report=metrics.note,
    )  # fmt: skip
  tokens = sum(values['num_tokens'] for values in history)
  loss = sum(values['loss_nats'] * values['num_tokens'] for values in history) / tokens
  kept = moments if exp.optimizer.keep_moments else None
  return params, kept, {'steps': len(history), 'tokens': int(tokens), 'loss_nats': loss}


def trainer(lm: LM) -> Transformer:
  """Returns the model as fine-tuning shards it."""
  return Transformer(lm.config, sharding.TRAIN)


def evaluate_domains(
  exp: Experiment, lm: LM, params: Params, key: jax.Array, entry: Entry, which: str, part: Part
) -> list[dict[str, Any]]:
  """Measures params in and out of domain, task by task, into the entry; returns a record for each answer."""
  metrics.note(f'evaluate the {which} params')
  model, on_sampler = for_sampling(lm, params)
  answers, prefix = [], 'tuned_' if which == 'tuned' else ''
  for domain, domain_tasks in (('id', exp.id_tasks), ('ood', exp.ood_tasks)):
    results = entry.values[prefix + domain] = {}
    for name, task in domain_tasks.items():
      measure = functools.partial(
        evaluate.evaluate, model, on_sampler, lm.tokenizer, {name: task}, exp.evaluate, exp.sampler, key=key
      )
      result, items = part(f'evaluate-{which}-{name}', measure)
      results |= result
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
  return LM(config, model_lib.init_params(config, exp.model.random.seed, mesh), tokenizer, mesh, sharding.TRAIN)


def evaluate_only(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row with the accuracies of config.model.path on the config's tasks."""
  exp = experiment.resolve(config)
  mesh, entry = sharding.make_mesh(**dataclasses.asdict(exp.mesh)), Entry(0)
  with jax.set_mesh(mesh):
    lm = load_model(exp, exp.model.path, mesh)
    evaluate_domains(exp, lm, lm.params, jax.random.key(exp.seed), entry, 'merged', part=lambda name, compute: compute())
  return entry.values
