"""The optax chain and its learning-rate schedule."""

import dataclasses
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW (arXiv 1711.05101) with warmup, cosine decay to zero and clipping."""

  learning_rate: float  # The rate at the peak.
  warmup_fraction: float  # The fraction of all steps that warm up.
  weight_decay: float  # Applies to matrices, not to norms and biases.
  b1: float
  b2: float
  eps: float
  clip_norm: float  # The largest norm of the whole gradient.
  keep_opt_state: bool  # Whether the state is kept from one round to the next.

  def __post_init__(self):
    for name, is_good, wanted in (
      ('learning_rate', self.learning_rate > 0, 'above 0'),
      ('warmup_fraction', 0 <= self.warmup_fraction <= 1, 'in [0, 1]'),
      ('weight_decay', self.weight_decay >= 0, 'at least 0'),
      ('b1', 0 <= self.b1 < 1, 'in [0, 1)'),
      ('b2', 0 <= self.b2 < 1, 'in [0, 1)'),
      ('eps', self.eps > 0, 'above 0'),
      ('clip_norm', self.clip_norm > 0, 'above 0'),
    ):
      if not is_good:
        raise ValueError(f'optimizer.{name}: {getattr(self, name)} is not {wanted}')


_DECAYING = ('kernel', 'embedding', 'lora_a', 'lora_b')  # Matrices; norms and biases do not decay.


def _decays(params: Any) -> Any:
  return jax.tree.map_with_path(lambda path, _: path[-1].key in _DECAYING, params)


def make(config: OptimizerConfig) -> optax.GradientTransformation:
  """Returns the transformation from gradients to updates at learning rate -1.

  The training step scales them by the schedule.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=_decays),
  )


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Returns the learning-rate schedule: linear warmup from zero, then cosine decay.

  The rate reaches zero after the last of `num_steps`.
  """
  # The first step is number 1 of the warmup: a rate of exactly zero would waste it.
  warmup = max(1, round(config.warmup_fraction * num_steps))
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, warmup, max(num_steps + 1, warmup + 1)
  )
  return lambda step: schedule(step + 1)
