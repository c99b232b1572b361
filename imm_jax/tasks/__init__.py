"""Tasks: questions, the prompts that ask them, and the verifiers of their answers.

The package also has a table of known data sets.
"""

from imm_jax.tasks.base import Example, guess_accuracy, Task
from imm_jax.tasks.questions import Custom, Known
from imm_jax.tasks.reasoning_gym import ReasoningGym
from imm_jax.tasks.synthetic import Synthetic

__all__ = ['FAMILIES', 'Example', 'Task', 'guess_accuracy']

FAMILIES = {
  'custom': Custom,
  'dataset': Known,
  'reasoning_gym': ReasoningGym,
  'synthetic': Synthetic,
}
