"""Converts between text and token ids: one class around a fast tokenizer of transformers."""

from collections.abc import Mapping, Sequence
import functools
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

# Without this, transformers would warn at each start that PyTorch is missing; it is not needed.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

# A GGUF names one token as the end; a chat model also ends its turn, or a document, with these.
_END_TOKENS = ('<|im_end|>', '<|endoftext|>', '<|eot_id|>')
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


class Tokenizer:
  """Encodes and decodes text.

  It also holds the chat template, the tokens that end a completion and generation_config.json.
  """

  def __init__(
    self, fast, source: object, generation_config: dict[str, Any], end_tokens: Sequence[str] = ()
  ):
    """Wraps `fast`, a transformers.PreTrainedTokenizerFast; `source` is named in errors."""
    self._fast, self._source = fast, source
    self.generation_config = generation_config
    ends = generation_config.get('eos_token_id')
    ends = ends if isinstance(ends, list) else [ends]
    ends = [fast.eos_token_id, *ends, *(fast.get_vocab().get(token) for token in end_tokens)]
    # Each is None if the files do not name it.
    self.bos_id, self.end_id = fast.bos_token_id, fast.eos_token_id
    self.stop_ids = frozenset(token for token in ends if token is not None)
    self.size = max(fast.get_vocab().values()) + 1
    ordinary = fast.get_vocab().keys() - set(fast.all_special_tokens)
    self._alphabet = ordinary if all(len(token) == 1 for token in ordinary) else None
    self._containing = {}

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'Tokenizer':
    """Returns the tokenizer of a Hugging Face directory. Runs no code that comes with a model."""
    path = pathlib.Path(path)
    if not (path / 'tokenizer.json').is_file():
      raise FileNotFoundError(f'{path}: has no tokenizer.json')
    import transformers  # pylint: disable=g-import-not-at-top

    # Not AutoTokenizer: for some classes, Qwen2Tokenizer for one, it builds its own pre-tokenizer
    # instead of the file's.
    try:
      json.loads((path / 'tokenizer.json').read_text(encoding='utf-8'))
      fast = transformers.PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except ValueError as error:
      raise ValueError(
        f'{path}: its tokenizer files are damaged ({error}); download or copy them again'
      ) from None
    return cls(fast, path, _read_generation_config(path))

  @classmethod
  def from_gguf(cls, meta: Mapping[str, Any], source: object) -> 'Tokenizer':
    """Returns the byte-level BPE tokenizer of a GGUF file's metadata.

    The keys are given without their prefix 'tokenizer.'.
    """
    return cls(_from_gguf(meta, source), source, {}, _END_TOKENS)

  @classmethod
  def from_characters(cls, chars: str) -> 'Tokenizer':
    """Returns a tokenizer with one token per character and an end token after them.

    The tokens are numbered in the order of `chars`.
    """
    import tokenizers  # pylint: disable=g-import-not-at-top
    import transformers  # pylint: disable=g-import-not-at-top

    end = '<end>'
    if len(set(chars)) < len(chars):
      raise ValueError(f'from_characters: {chars!r} has a character twice')
    backend = tokenizers.Tokenizer(
      tokenizers.models.WordLevel({char: i for i, char in enumerate([*chars, end])})
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r'[\s\S]'), 'isolated')
    backend.decoder = tokenizers.decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend, eos_token=end, pad_token=end
    )
    return cls(fast, 'characters', {})

  def encode(self, text: str) -> list[int]:
    """Returns the tokens of `text` and no others."""
    if self._alphabet is not None:
      unknown = (
        set(re.sub('|'.join(map(re.escape, self._fast.all_special_tokens)), '', text))
        - self._alphabet
      )
      if unknown:
        raise ValueError(f'{self._source}: no token for {sorted(unknown)} in {text!r}')
    return self._fast.encode(text, add_special_tokens=False, verbose=False)

  def encode_prompt(self, prompt: str | list[dict[str, str]]) -> list[int]:
    """Returns the tokens of a prompt that the model is to continue.

    Plain text gets the tokenizer's prefix (Llama's bos), unless it already begins with that, and no
    suffix. Messages [{'role', 'content'}] get the chat template and the opening of the assistant's
    turn.
    """
    if not isinstance(prompt, str):
      return self.encode(self.render_chat(prompt))
    written = self._prefix and prompt.startswith(self._fast.decode(self._prefix))
    return self.encode(prompt) if written else self._prefix + self.encode(prompt)

  @property
  def chat_template(self) -> str | None:
    """The text of the chat template, None without one."""
    return self._fast.chat_template

  def render_chat(self, messages: list[dict[str, str]], opens_answer: bool = True) -> str:
    """Returns messages in the chat template, ready for the assistant to write.

    The assistant's turn is opened after them, or the last message is left open. Raises ValueError
    without a template.
    """
    if self.chat_template is None:
      raise ValueError(f"{self._source}: the tokenizer has no chat template; use format='plain'")
    return self._fast.apply_chat_template(
      messages,
      tokenize=False,
      add_generation_prompt=opens_answer,
      continue_final_message=not opens_answer,
    )

  @functools.cached_property
  def turn_end(self) -> int | None:
    """The token that ends an assistant's turn.

    It is the token that the chat template writes after the turn, if that token ends a completion.
    """
    if self.chat_template is None:
      return self.end_id
    probe = 'Seventeen.'  # A text that no template contains.
    messages = [{'role': 'user', 'content': probe}, {'role': 'assistant', 'content': probe}]
    chat = self._fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    behind = self._fast.encode(chat.rpartition(probe)[2], add_special_tokens=False, verbose=False)
    return behind[0] if behind and behind[0] in self.stop_ids else self.end_id

  @functools.cached_property
  def _prefix(self) -> list[int]:
    probe = self._fast.decode([min(set(range(self.size)) - set(self._fast.all_special_ids))])
    encoding = self._fast(probe, return_special_tokens_mask=True)
    return encoding['input_ids'][: encoding['special_tokens_mask'].index(0)]

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text of `tokens`, without special tokens, and with spaces unchanged."""
    return self._fast.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

  def tokens_containing(self, strings: Sequence[str]) -> np.ndarray:
    """Returns [size] bool, the tokens whose own text contains one of `strings` entirely.

    A part of a character has no text.
    """
    key = tuple(strings)
    if key not in self._containing:
      self._containing[key] = np.array(
        [any(string in text for string in key) for text in self._texts]
      )
    return self._containing[key]

  @functools.cached_property
  def special_tokens(self) -> dict[int, str]:
    """The special tokens, which `decode` leaves out, and their names."""
    added = self._fast.added_tokens_decoder.items()
    return {i: token.content for i, token in added if token.special}

  def ending(self, stop: Sequence[str]) -> frozenset[int]:
    """Returns the tokens that end a completion.

    They are the model's own, and the special tokens among `stop`, which have no text.
    """
    return self.stop_ids | {i for i, name in self.special_tokens.items() if name in stop}

  @functools.cached_property
  def tokens_with_text(self) -> frozenset[int]:
    """The tokens that add a character or more to every text.

    Special tokens and parts of a character are not among them.
    """
    return frozenset(i for i, text in enumerate(self._texts) if text and '\ufffd' not in text)

  @functools.cached_property
  def _texts(self) -> list[str]:
    """The text of each token after another one.

    Some decoders drop the space in front of a first token, so each is decoded after another.
    """
    decode = self._fast.backend_tokenizer.decode_batch
    firsts, pairs = (
      decode([[i] for i in range(self.size)]),
      decode([[i, i] for i in range(self.size)]),
    )
    return [pair[len(first) :] for first, pair in zip(firsts, pairs, strict=True)]

  def check_vocab_size(self, vocab_size: int, source: object) -> None:
    """Raises ValueError when a model with this vocabulary lacks an embedding for some token."""
    if self.size > vocab_size:
      raise ValueError(
        f'{source}: the tokenizer of {self._source} has {self.size} tokens, the model only'
        f' {vocab_size}'
      )

  def check_same(self, other: 'Tokenizer', source: object) -> None:
    """Checks that another tokenizer, of the model `source`, gives all tokens the same ids.

    Raises ValueError when it does not.
    """
    mine, others = self._fast.get_vocab(), other._fast.get_vocab()
    differing = [
      token for token in mine.keys() | others.keys() if mine.get(token) != others.get(token)
    ]
    if differing:
      raise ValueError(
        f'{source}: its tokenizer has another vocabulary: {len(differing)} tokens differ, such as'
        f' {min(differing)!r}, from those of {self._source}; take a model of the same family'
      )

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes tokenizer files, chat template and generation_config.json.

    With them transformers stops at the same ids.
    """
    path = pathlib.Path(path)
    self._fast.save_pretrained(path)
    # transformers 5 writes a class name that 4 does not know.
    file = path / 'tokenizer_config.json'
    settings = json.loads(file.read_text(encoding='utf-8'))
    _write_json(file, settings | {'tokenizer_class': 'PreTrainedTokenizerFast'})
    ids = {
      'bos_token_id': self._fast.bos_token_id,
      'eos_token_id': sorted(self.stop_ids) or None,
      'pad_token_id': self._fast.pad_token_id,
    }
    ids = {name: value for name, value in ids.items() if value is not None}
    _write_json(path / 'generation_config.json', self.generation_config | ids)


def _read_generation_config(path: pathlib.Path) -> dict[str, Any]:
  """Returns generation_config.json, or without it the end tokens of config.json.

  transformers does the same.
  """
  file = path / 'generation_config.json'
  if file.exists():
    return json.loads(file.read_text(encoding='utf-8'))
  file = path / 'config.json'
  config = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
  ends = config.get('eos_token_id')
  return {} if ends is None else {'eos_token_id': ends}


def _write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
  file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def _smollm_pre_tokenizer():
  from tokenizers import pre_tokenizers  # pylint: disable=g-import-not-at-top

  digits = pre_tokenizers.Digits(individual_digits=True)
  return pre_tokenizers.Sequence(
    [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
  )


# tokenizer.ggml.pre -> the pre-tokenizer of that model's own tokenizer.json.
_PRE_TOKENIZERS = {'smollm': _smollm_pre_tokenizer}


def _from_gguf(meta: Mapping[str, Any], source: object):
  """Returns the tokenizer as a transformers.PreTrainedTokenizerFast."""
  import tokenizers  # pylint: disable=g-import-not-at-top
  import transformers  # pylint: disable=g-import-not-at-top

  for key, known in (('ggml.model', ('gpt2',)), ('ggml.pre', tuple(_PRE_TOKENIZERS))):
    if meta.get(key) not in known:
      raise ValueError(
        f'{source}: tokenizer.{key} = {meta.get(key)!r} is not supported (only {", ".join(known)});'
        ' convert from the Hugging Face directory instead'
      )
  tokens, kinds = meta['ggml.tokens'], meta['ggml.token_type']
  merges = [tuple(merge.split(' ')) for merge in meta['ggml.merges']]
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
  )
  backend.pre_tokenizer = _PRE_TOKENIZERS[meta['ggml.pre']]()
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_tokens(
    [
      tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
      for token, kind in zip(tokens, kinds, strict=True)
      if kind in (_CONTROL, _USER_DEFINED)
    ]
  )
  names = {'bos_token': 'ggml.bos_token_id', 'eos_token': 'ggml.eos_token_id'}
  names |= {'unk_token': 'ggml.unknown_token_id', 'pad_token': 'ggml.padding_token_id'}
  special = {name: tokens[meta[key]] for name, key in names.items() if key in meta}
  if meta.get('ggml.add_bos_token'):
    bos = special['bos_token']
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, tokens.index(bos))]
    )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, chat_template=meta.get('chat_template'), **special
  )
