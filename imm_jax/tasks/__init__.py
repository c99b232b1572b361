"""Tasks: questions, the prompts that ask them and the verifiers of their answers. One file a family."""

from imm_jax.tasks.base import Example, guess_accuracy, nearest, Task
from imm_jax.tasks.multiple_choice import MultipleChoice
from imm_jax.tasks.reasoning_gym import ReasoningGym
from imm_jax.tasks.synthetic import Synthetic
from imm_jax.tasks.word_problems import WordProblems

__all__ = ['FAMILIES', 'Example', 'Task', 'guess_accuracy', 'nearest']

FAMILIES = {
  'multiple_choice': MultipleChoice,
  'reasoning_gym': ReasoningGym,
  'synthetic': Synthetic,
  'word_problems': WordProblems,
}
