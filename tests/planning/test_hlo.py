"""The cost of a compiled program: FLOPs of loops by their trip counts, collectives by kind, on this machine's compiler."""

from imm_jax import sharding
from imm_jax.planning import hlo
import jax
import jax.numpy as jnp
import pytest


def cost(function, *shapes):
  return hlo.cost(jax.jit(function).lower(*(jnp.zeros(shape) for shape in shapes)).compile().as_text())


@pytest.mark.parametrize('trips', [1, 2, 8, 32])
def test_a_loops_flops_count_as_often_as_it_runs(trips):
  def loop(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=trips)[0]

  assert cost(loop, (16, 64), (64, 64)).flops == trips * 2 * 16 * 64 * 64


def test_nested_loops_multiply():
  def inner(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)[0]

  def outer(x, w):
    return jax.lax.scan(lambda x, _: (jnp.sin(inner(x, w)), None), x, length=5)[0]

  assert cost(outer, (16, 64), (64, 64)).flops == 15 * 2 * 16 * 64 * 64


@pytest.mark.parametrize('equation, shapes, flops', [
  ('BTD,DNH->BTNH', ((2, 8, 32), (32, 4, 16)), 2 * 2 * 8 * 32 * 64),
  ('BTNH,BSNH->BNTS', ((2, 8, 4, 16), (2, 24, 4, 16)), 2 * 2 * 4 * 8 * 24 * 16),
])  # fmt: skip
def test_the_flops_of_an_einsum(equation, shapes, flops):
  assert cost(lambda x, y: jnp.einsum(equation, x, y), *shapes).flops == flops


@pytest.mark.parametrize(
  'line, flops',
  [
    # A matrix product, a batch of them as a dilated convolution (each element meets one window), and a real convolution.
    ('f32[8,32]{1,0} convolution(%a, %b), dim_labels=bf_io->bf', 2 * 8 * 16 * 32),
    (
      'f32[4,8,32]{2,1,0} convolution(%c, %d), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf',
      2 * 4 * 8 * 16 * 32,
    ),
    ('f32[1,6,32]{2,1,0} convolution(%e, %f), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f', 2 * 16 * 16 * 32),
  ],
)
def test_a_convolution_counts_what_meets(line, flops):
  text = f"""HloModule m
ENTRY %main (p: f32[1]) -> f32[1] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  %b = f32[16,32]{{1,0}} parameter(1)
  %c = f32[4,8,16]{{2,1,0}} parameter(2)
  %d = f32[4,16,32]{{2,1,0}} parameter(3)
  %e = f32[1,6,16]{{2,1,0}} parameter(4)
  %f = f32[3,16,32]{{2,1,0}} parameter(5)
  %g = {line}
}}
"""
  assert hlo.cost(text).flops == flops


def test_cycles_of_loops_and_fusions():
  text = """HloModule m
%fused (p: f32[8]) -> f32[8] {
  %q = f32[8]{0} negate(%p), backend_config={"estimated_cycles":"7"}
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
}
%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[] constant(28)
  %lt = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
  %k = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call"
  %c = f32[8]{0} copy(%p), backend_config={"estimated_cycles":"5"}
}
"""
  cost = hlo.cost(text)
  assert (cost.cycles, cost.kernels) == (28 * 100 + 5, 1)
  with pytest.raises(ValueError, match='w: a loop whose trip count is not known'):
    hlo.cost(text.replace('%n = s32[] constant(28)\n', '%n = s32[] parameter(0)\n'))


def test_collectives_by_kind_and_bytes():
  mesh = sharding.make_mesh(1, 8, 1)
  split, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P('fsdp'), jax.P()))
  gather = jax.jit(lambda x: x * 2, in_shardings=split, out_shardings=whole).lower(jnp.zeros((16, 4))).compile()
  assert hlo.cost(gather.as_text()).collective_bytes == {'all-gather': 16 * 4 * 4}
  total = jax.jit(lambda x: x.sum(), in_shardings=split).lower(jnp.zeros((16, 4))).compile()
  assert hlo.cost(total.as_text()).collective_bytes == {'all-reduce': 4}


def test_a_collective_that_is_spread_over_ops_counts_once():
  gather = 'bf16[64]{0} all-gather(%p), channel_id=3, dimensions={0}'
  text = f"""HloModule m
%part (p: bf16[8]) -> bf16[64] {{
  %g = {gather}
}}
%body (p: s32[]) -> s32[] {{
  %f = bf16[64]{{0}} fusion(%p), kind=kCustom, calls=%part
}}
%condition (p: s32[]) -> pred[] {{
  %n = s32[] constant(8)
}}
ENTRY %main (p: bf16[8]) -> bf16[64] {{
  %start = bf16[64]{{0}} fusion(%p), kind=kCustom, calls=%part
  %w = s32[] while(%t), condition=%condition, body=%body
}}
"""
  assert hlo.cost(text).collective_bytes == {'all-gather': 128}
