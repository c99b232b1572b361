"""`imm convert`: writes a model as a Hugging Face directory."""

from imm_jax.cli.flags import Flags

_USAGE = (
  'SOURCE TARGET: a model (HF directory, .gguf, WORKDIR@ROUND) or a LoRA adapter of PEFT or TRL,'
  ' which is merged into its base, and the Hugging Face directory to write'
)


def main(flags: Flags) -> None:
  """Runs the command."""
  dtype = flags.choice('dtype', 'float32', ['float32', 'bfloat16'], 'Of the weights in TARGET.')
  base = flags.string('base', None, 'Of a LoRA adapter, in place of the one it names.')
  source, target = flags.parse(num_positional=2, usage=_USAGE)
  from imm_jax import lm
  from imm_jax.formats import peft
  from imm_jax.reports import card

  lm.check_target(target)
  if peft.is_adapter(source):
    model = lm.load_adapter(source, base.value)
  elif base.value:
    raise ValueError(f'--base: {source} is no LoRA adapter: it has no {peft.CONFIG}')
  else:
    model = lm.load(source)
  model.save(target, dtype.value, card.render(model.source))
  print(f'wrote {target}')
