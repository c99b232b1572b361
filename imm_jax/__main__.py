"""`python -m imm_jax`: the same as `imm`."""

from imm_jax import cli

cli.main()
