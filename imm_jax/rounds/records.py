"""What a run records: samples, answers and the summary of a round, as they are written to JSON and
read back.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import time
from typing import Any, NamedTuple

from imm_jax import processes


@dataclasses.dataclass(frozen=True)
class Sample:
  """A completion with its verdict, or a solution of the data: a line of samples.jsonl."""

  question_id: str  # TASK/DIGEST, see tasks.make_example
  question: str
  gold: str
  sample_index: int | None  # among the question's samples; None for a solution of the data
  text: str  # without what ended it
  tokens: list[int]  # with what ended it
  # What it is learned behind, without solved examples; [] in runs before version 0.2
  prompt_tokens: list[int]
  logprob: float | None  # of all tokens, in nats; None for a solution of the data
  # Summed over the tokens' distributions, in nats; None for a solution of the data
  entropy: float | None
  finish_reason: str  # 'stop' or 'length'
  right: bool  # the verifier's verdict
  reason: str  # why it is not learned from, see synthesize.accept; '' where it is
  real: bool = False  # a solution of the data

  @property
  def accepted(self) -> bool:
    """Whether it is learned from."""
    return not self.reason

  @property
  def task(self) -> str:
    """The name of its question's task."""
    return self.question_id.rpartition('/')[0]

  def to_json(self) -> dict[str, Any]:
    """Returns the fields, with `accepted`, and `real` only where it is."""
    values = dataclasses.asdict(self) | {'accepted': self.accepted}
    if not self.real:
      del values['real']
    return values

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Sample':
    """Reads what to_json made, or an earlier version."""
    return cls(**_known(cls, {'prompt_tokens': [], 'entropy': None} | dict(values)))


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer to a test question with its verdict: a line of evaluations.jsonl."""

  params: str  # whose: 'merged' or 'tuned'
  task: str
  id: str  # of the question
  question: str
  answer: str
  gold: str
  right: bool

  def to_json(self) -> dict[str, Any]:
    """Returns the fields."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Answer':
    """Reads what to_json made, or an earlier version."""
    return cls(**_known(cls, values))


class State(NamedTuple):
  """Which params of a run: those after a round's merge, or the tuned ones before it."""

  round_: int
  which: str  # 'merged' or 'tuned'

  def key(self, domain: str) -> str:
    """Returns the field of the round's summary that has their accuracies in a domain."""
    return domain if self.which == 'merged' else f'tuned_{domain}'

  @property
  def name(self) -> str:
    """What they are called in a table."""
    return 'base' if self == BASE else f'round {self.round_} {self.which}'


BASE = State(0, 'merged')  # The original model.

Results = dict[str, dict[str, float]]  # task -> accuracy, low, high, n, ...; see evaluate.evaluate


@dataclasses.dataclass
class RoundSummary:
  """A round's row of summary.json, filled phase by phase; a field is None where there is nothing to
  say.
  """

  round: int
  versions: dict[str, str] = dataclasses.field(default_factory=processes.versions)
  devices: str = dataclasses.field(default_factory=processes.devices)
  secs: dict[str, float] = dataclasses.field(default_factory=dict)  # of each phase
  # In round 0: how many questions each task has, and their digest
  tasks: dict[str, dict[str, Any]] | None = None
  sample: dict[str, float] | None = None  # see synthesize.summary
  finetune: dict[str, Any] | None = None  # steps, tokens, loss_nats, drift_norm
  merge: dict[str, Any] | None = None  # method, alpha, drift_norm, and what the rule measured
  id: Results | None = None  # accuracies of the merged params, in domain
  ood: Results | None = None  # and out of domain
  text: dict[str, float] | None = None  # the likelihood of evaluate.text_source
  tuned_id: Results | None = None  # the same of the tuned params
  tuned_ood: Results | None = None
  tuned_text: dict[str, float] | None = None

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Times a phase. Raises processes.Stopped where a notice to stop has come before."""
    processes.check_stop()
    start = time.monotonic()
    yield
    self.secs[name] = round(time.monotonic() - start, 3)

  def results(self, domain: str, which: str = 'merged') -> Results:
    """Returns what was measured in a domain, 'id' or 'ood', by task; {} where nothing was."""
    return getattr(self, State(self.round, which).key(domain)) or {}

  def states(self) -> list[State]:
    """Returns which params were measured, in order."""
    measured = {'tuned': self.tuned_id, 'merged': self.id}
    return [State(self.round, which) for which, found in measured.items() if found is not None]

  def scalars(self) -> dict[str, float]:
    """Returns the numbers as flat metrics `<phase>/<name>`."""
    flat = {}
    for field, name in (
      ('id', 'eval'),
      ('ood', 'eval'),
      ('tuned_id', 'eval_tuned'),
      ('tuned_ood', 'eval_tuned'),
    ):
      for task, result in (getattr(self, field) or {}).items():
        shown = {
          key: value for key, value in result.items() if key.startswith('accuracy') or '@' in key
        }
        flat |= {f'{name}/{task}/{key}': value for key, value in shown.items()}
    for phase in ('text', 'tuned_text', 'sample', 'finetune', 'merge'):
      for key, value in (getattr(self, phase) or {}).items():
        if isinstance(value, int | float):
          flat[f'{phase}/{key}'] = value
    return flat | {f'{phase}/secs': value for phase, value in self.secs.items()}

  def to_json(self) -> dict[str, Any]:
    """Returns the fields that say something."""
    return {name: value for name, value in vars(self).items() if value is not None}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'RoundSummary':
    """Reads what to_json made, or an earlier version."""
    return cls(**_known(cls, {'versions': {}, 'devices': ''} | dict(values)))


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
  names = {field.name for field in dataclasses.fields(cls)}
  return {name: value for name, value in values.items() if name in names}
