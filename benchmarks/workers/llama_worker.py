"""llama.cpp's side of the benchmarks, by its C API.

llama-cpp-python's Llama decodes only one sequence at a time.
"""

import ctypes
import functools
import os
import tempfile
import time

import llama_cpp
import numpy as np
import serve

# Has a name so that it lives as long as C may call it
quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))


@functools.cache
def model(gguf):
  """Returns the model of a .gguf file, with its weights as float32."""
  with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, 'float32.gguf').encode()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
    assert llama_cpp.llama_model_quantize(gguf.encode(), path, ctypes.byref(params)) == 0, gguf
    return llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())


def decode(prompts, max_new_tokens, gguf):
  """Completes prompts greedily as sequences of one batch, with nothing that stops."""
  num_rows, num_prompt = len(prompts), sum(map(len, prompts))
  vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model(gguf)))
  params = llama_cpp.llama_context_default_params()
  params.n_seq_max, params.n_batch = num_rows, num_prompt
  params.n_ctx = num_rows * (max(map(len, prompts)) + max_new_tokens)
  params.n_threads = params.n_threads_batch = int(os.environ['OMP_NUM_THREADS'])
  params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
  start = time.monotonic()
  context = llama_cpp.llama_init_from_model(model(gguf), params)
  batch = llama_cpp.llama_batch_init(num_prompt, 0, 1)

  def step(rows, position):
    """Runs each row's tokens, the first at its position; returns the most likely next tokens.

    There is one for each row.
    """
    n, ends = 0, []
    for k, row in enumerate(rows):
      for i, token in enumerate(row):
        batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = (
          token,
          position[k] + i,
          1,
          k,
        )
        batch.logits[n] = i == len(row) - 1
        n += 1
      ends.append(n - 1)
    batch.n_tokens = n
    assert llama_cpp.llama_decode(context, batch) == 0
    logits = [
      np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, end), (vocab_size,))
      for end in ends
    ]
    return [int(row.argmax()) for row in logits]

  tokens, position, rows = [[] for _ in prompts], [0] * num_rows, prompts
  for _ in range(max_new_tokens):
    chosen = step(rows, position)
    position = [first + len(row) for first, row in zip(position, rows, strict=True)]
    rows = [[token] for token in chosen]
    for own, token in zip(tokens, chosen, strict=True):
      own.append(token)
  secs = time.monotonic() - start
  llama_cpp.llama_batch_free(batch)
  llama_cpp.llama_free(context)
  return {'secs': secs, 'num_tokens': sum(map(len, tokens)), 'tokens': tokens}


serve.serve({'decode': decode})
