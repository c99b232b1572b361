"""The architecture of a model, and how it is computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import sharding
from imm_jax.models import layers


def _all_but_gathered(primitive, *_, **__) -> bool:
  # A sharding constraint gathers a weight; for an activation it computes nothing.
  return primitive.name != 'sharding_constraint'


REMAT_POLICIES = {
  'none': _all_but_gathered,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The architecture of a model, and how it is computed (dtype, remat)."""

  family: str  # 'llama', 'qwen3', ...: how the model is named in Hugging Face's config.json
  vocab_size: int
  num_layers: int
  embed_dim: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_length: int  # tokens
  rope_theta: float
  rms_norm_eps: float
  tie_embeddings: bool
  rope_scaling: layers.Llama3Rope | layers.LongRope | None = None
  # The rotary base of layers with a sliding window; None: rope_theta and rope_scaling.
  local_rope_theta: float | None = None
  rotary_fraction: float = 1.0  # The fraction of head_dim, from its start, that rotates.
  qkv_bias: bool = False
  qk_norm: str = ''  # RMSNorm of queries and keys: over each 'head', or over 'all' heads at once.
  query_scalar: int | None = None  # Scores are divided by its root; None: head_dim.
  attention_softcap: float | None = None  # The softcap of the scores.
  logit_softcap: float | None = None
  sliding_window: int | None = None  # In tokens, the query's own included.
  global_layers: tuple[int, ...] = ()  # The layers without a sliding window.
  activation: str = 'silu'  # a key of layers.ACTIVATIONS
  # Where the norms of attention and MLP are: 'before', 'after' (and before the sum) or 'both'.
  norms: str = 'before'
  norm_plus_one: bool = False  # RMSNorm multiplies by 1 + scale
  scale_embeddings: bool = False  # Multiplies embeddings by the root of embed_dim.
  dtype: str = 'float32'  # The dtype of the computation; params are always float32.
  remat: str = 'none'  # A key of REMAT_POLICIES: the values that the backward pass recomputes.
  # The attention of rows to themselves: 'xla', 'splash' (TPU) or 'cudnn' (GPU, bfloat16).
  attention: str = 'xla'

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'model: num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise ValueError(f"model.dtype: '{self.dtype}' is not one of float32, bfloat16")
    if self.remat not in REMAT_POLICIES:
      raise ValueError(
        f"model.remat: '{self.remat}' is not one of {', '.join(REMAT_POLICIES)} (auto: imm plan)"
      )
    if self.attention not in ('xla', 'splash', 'cudnn'):
      raise ValueError(
        f"model.attention: '{self.attention}' is not one of auto, xla, splash, cudnn"
      )
    if self.attention == 'cudnn' and self.attention_softcap is not None:
      raise ValueError(
        f'model.attention: cudnn cannot softcap scores, which a {self.family} does; take auto or'
        ' xla'
      )

  def is_global(self) -> np.ndarray | None:
    """Returns the layers without a sliding window, [L] bool; None if all layers are alike."""
    return np.isin(np.arange(self.num_layers), self.global_layers) if self.global_layers else None

  def frequencies(self, is_global: jax.Array | None) -> np.ndarray | jax.Array:
    """Returns the rotary frequencies [R / 2] f32 of a layer.

    If layers differ, is_global [] bool says whether the layer has no sliding window.
    """
    rotary_dim = int(self.head_dim * self.rotary_fraction)
    freqs = layers.rope_frequencies(rotary_dim, self.rope_theta, self.rope_scaling)
    if self.local_rope_theta is None or self.sliding_window is None:
      return freqs
    local = layers.rope_frequencies(rotary_dim, self.local_rope_theta, None)
    return local if is_global is None else jnp.where(is_global, freqs, local)


def choose_attention(attention: str, config: ModelConfig, mesh: jax.sharding.Mesh) -> str:
  """Resolves 'auto' to the attention kernel of the mesh's platform, or else to XLA's own fusion.

  The cuDNN kernel is for bfloat16, cannot softcap scores, and takes heads of more than 128 on some
  GPUs only.
  """
  has_cudnn = (
    config.dtype == 'bfloat16' and config.attention_softcap is None and config.head_dim <= 128
  )
  kernels = {'tpu': 'splash', 'gpu': 'cudnn' if has_cudnn else 'xla'}
  return kernels.get(mesh.devices.flat[0].platform, 'xla') if attention == 'auto' else attention


def mesh_advice(config: ModelConfig, mesh: jax.sharding.Mesh) -> str:
  """Returns the parts of the model that every device holds whole, and a mesh.data to split them.

  It returns '' if no mesh.data would split them.
  """
  data, fsdp, tensor = (mesh.shape[axis] for axis in sharding.AXES)
  sizes = {
    'embed_dim (training)': (config.embed_dim, 1),
    'num_heads (sampling)': (config.num_heads, tensor),
  }
  whole = [f'{name} = {size}' for name, (size, parts) in sizes.items() if size % (fsdp * parts)]
  better = [
    n
    for n in range(1, fsdp)
    if fsdp % n == 0 and not any(size % (n * parts) for size, parts in sizes.values())
  ]
  if not whole or not better:
    return ''
  advice = data * fsdp // max(better)
  return f'fsdp = {fsdp} leaves {" and ".join(whole)} whole on every device; try mesh.data={advice}'
