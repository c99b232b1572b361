"""A run: an experiment opened in its workdir, and the state that its rounds pass on.

`Run` opens a workdir, resumes it and commits its rounds. `RunState` passes from one round to the
next. `Round` is a round in progress.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

from etils import epath
import jax

from imm_jax import console, merging, processes, sharding
from imm_jax import lm as lm_lib
from imm_jax.formats import checkpoint
from imm_jax.lm import LM
from imm_jax.merging import rules
from imm_jax.models import transformer
from imm_jax.models.transformer import Params
from imm_jax.rounds import experiment, loading, metrics
from imm_jax.rounds.experiment import Experiment
from imm_jax.rounds.records import Answer, RoundSummary, Sample
from imm_jax.rounds.workdir import Workdir
from imm_jax.tasks import Task
from imm_jax.training.finetune import Trainer


@dataclasses.dataclass(frozen=True)
class RunState:
  """The state that a round starts from, in the paper's notation.

  All trees are float32 and sharded for training.
  """

  base: Params  # theta_0, the original model.
  params: Params  # M_t, the newest merge.
  # The params that the next tuned params are merged with: base, params, or the mean of all starts.
  anchor: Params
  sample_params: Params  # The next samples come from these: M_t, or S_t with sample_from='tuned'.
  # The optimizer state with optimizer.keep_opt_state; None starts each round with a new one.
  opt_state: Any


@dataclasses.dataclass
class Round:
  """A round in progress; round 0 measures the original model."""

  number: int
  key: jax.Array  # All randomness of the round derives from this key.
  summary: RoundSummary
  workdir: Workdir
  answers: list[Answer] = dataclasses.field(default_factory=list)

  def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
    """Times a phase. Raises processes.Stopped if a notice to stop has already come."""
    return self.summary.phase(name)

  def part(self, name: str, compute: Callable[[], Any]) -> Any:
    """Returns compute(), a JSON value, or the value that an earlier process of the round got."""
    return self.workdir.part(self.number, name, compute, report=console.note)


class Run:
  """An experiment in its workdir, on its devices."""

  def __init__(
    self, exp: Experiment, workdir: Workdir, mesh: jax.sharding.Mesh, stack: contextlib.ExitStack
  ):
    self.exp = exp
    self.workdir = workdir
    self.mesh = mesh
    self._stack = stack
    self._questions: dict[str, dict[str, Any]] = {
      name: _describe(exp, task) for name, task in exp.all_tasks.items()
    }
    exp.check_questions()

  @classmethod
  @contextlib.contextmanager
  def open(cls, config: Mapping[str, Any], path: str) -> Iterator['Run']:
    """Opens a workdir for an experiment.

    Everything that can be wrong before a model is loaded is checked here.

    Raises:
      ValueError: the config is wrong, or the workdir belongs to another one; the message names the
        key and the fix.
      OSError: a file cannot be read or written.
    """
    exp = experiment.resolve(config)
    workdir = Workdir(path)
    beside = epath.Path(workdir.path).parent / '.xla_cache'
    cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(beside)
    jax.config.update('jax_compilation_cache_dir', cache)
    mesh = exp.mesh.make()
    with contextlib.ExitStack() as stack:
      run = cls(exp, workdir, mesh, stack)
      for line in workdir.open(config):
        console.note(line)
      run.check_data()
      stack.enter_context(jax.set_mesh(mesh))
      yield run

  def check_data(self) -> None:
    """Raises ValueError when the questions are not those that round 0 was measured on."""
    rows = self.workdir.finished()
    began_with: dict[str, dict[str, Any]] = rows[0]['tasks'] if rows else {}
    for name, was in began_with.items():
      now = self._questions.get(name, was)
      if 'digest' in was and was['digest'] != now['digest']:
        raise ValueError(
          f'tasks.{name}: its data have changed since the run began, from {was["num_train"]} train'
          f' and {was["num_test"]} test questions to {now["num_train"]} and {now["num_test"]}, or'
          ' in their texts; restore them, or choose another workdir'
        )

  @property
  def is_finished(self) -> bool:
    """Whether all rounds are done."""
    return self.workdir.num_done > self.exp.num_rounds

  def resume(self) -> RunState:
    """Returns the state that the next round starts from, after the newest round with intact arrays.

    Rounds with damaged arrays are set aside, to be done again. Raises ValueError when the damaged
    round is round 0 and later rounds build on it.
    """
    while True:
      done = self.workdir.num_done
      try:
        state = self._load(done)
        break
      except checkpoint.Damaged as error:
        # Only the newest round can be done again: later ones build on the others.
        if done == 0 or error.path != self.workdir.checkpoint(done - 1):
          raise ValueError(f'{error}; restore it, or choose another workdir') from error
        console.note(f'{error}; its round is done again')
        processes.on_first(functools.partial(self.workdir.set_aside, done - 1))
    loading.check_teacher(self.exp, self.lm)
    loading.check_lengths(self.exp, self.lm)
    shardings = transformer.param_shardings(self.lm.config, self.mesh, sharding.TRAIN)
    self.merge = merging.make_merge(self.exp.merge, shardings, donates=self.exp.merge_donates)
    lines = [
      line for number in range(done) for line in self.workdir.read_lines(number, 'metrics.jsonl')
    ]
    writer = metrics.Writer(
      self.workdir.path,
      lines,
      logger=self.exp.logger,
      writes=processes.is_first(),
    )
    self.writer = self._stack.enter_context(contextlib.closing(writer))
    return state

  def rounds(self) -> Iterator[Round]:
    """Yields the remaining rounds; each has to be committed before the next."""
    for number in range(self.workdir.num_done, self.exp.num_rounds + 1):
      console.note(
        f'round {number} of {self.exp.num_rounds}' if number else 'round 0: the original model'
      )
      key = jax.random.fold_in(jax.random.key(self.exp.seed), number)
      yield Round(
        number, key, RoundSummary(number, tasks=None if number else self._questions), self.workdir
      )

  def commit(self, round: Round, state: RunState) -> None:
    """Saves a round's arrays, answers, metrics and summary, which makes the round done."""
    lines = [answer.to_json() for answer in round.answers]
    self.workdir.write_lines(round.number, 'evaluations.jsonl', lines)
    with round.phase('checkpoint'):
      trees = {'params': state.params}
      if self.exp.sample_from == 'tuned':
        trees['tuned'] = state.sample_params
      if state.opt_state is not None:
        trees['opt_state'] = state.opt_state
      checkpoint.save(self.workdir.checkpoint(round.number), trees)
    self.writer.write(round.number, round.summary.scalars())
    self.workdir.write_lines(round.number, 'metrics.jsonl', self.writer.of_round(round.number))
    self.writer.flush()  # After the last round, nothing else would flush the writer.
    self.workdir.finish(round.summary.to_json())

  def earlier_samples(self, number: int) -> list[Sample]:
    """Returns the samples of all rounds before a round.

    Raises ValueError when an earlier version sampled them, which did not record prompts.
    """
    samples = []
    for earlier in range(1, number):
      for sample in self.workdir.read_samples(earlier):
        samples.append(sample)
        if sample.accepted and not sample.prompt_tokens:
          raise ValueError(
            f'{self.workdir.path}: samples of round {earlier} have no prompt_tokens, which version'
            " 0.1 did not record; go on with synthesize.data='replace', or begin another workdir"
          )
    return samples

  def _load(self, done: int) -> RunState:
    exp = self.exp
    self.lm: LM = loading.load_base(exp, self.workdir, self.mesh)
    self.trainer = Trainer(self.lm.model, exp.finetune, exp.optimizer, self.mesh)
    base = self.lm.params
    if done < 2:
      return RunState(base, base, base, base, None)
    restore = functools.partial(lm_lib.restore, self.workdir.path, like=self.lm)
    params = restore(done - 1, 'params')
    anchor = params if exp.merge.anchor == 'previous' else base
    for number in range(1, done if exp.merge.anchor == 'all_previous' else 0):
      anchor = rules.next_anchor('all_previous', anchor, restore(number, 'params'), number)
    opt_state = None
    if exp.optimizer.keep_opt_state:
      abstract = self.trainer.abstract().opt_state
      opt_state = checkpoint.restore(self.workdir.checkpoint(done - 1), 'opt_state', abstract)
    sample_params = params if exp.sample_from == 'merged' else restore(done - 1, 'tuned')
    return RunState(base, params, anchor, sample_params, opt_state)


def _describe(exp: Experiment, task: Task) -> dict[str, Any]:
  """Returns the number of questions of a task and a digest of them.

  This reads the questions. The numbers are also printed.
  """
  train = exp.train_questions(task)
  num_train = len(train)
  num_test = len(task.test)
  num_dropped = task.num_dropped + len(task.train) - num_train
  console.note(
    f'{task.name}: {num_train} train and {num_test} test questions; {num_dropped} duplicates'
    ' dropped'
  )
  asked = [
    [(example.id, example.answer) for example in examples] for examples in (train, task.test)
  ]
  digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
  return {
    'num_train': num_train,
    'num_test': num_test,
    'num_dropped': num_dropped,
    'digest': digest,
  }
