"""The sub-dicts that experiments share.

Every key of a config is set here or in the experiment's own file. docs/configs.md is made from this
file: the comment after a key, or above it, is the key's line there (python docs/generate.py).
"""

import ml_collections

from imm_jax.tasks import catalog


def config(**overrides) -> ml_collections.ConfigDict:
  """Returns the defaults, with keys of sections replaced by the given ones.

  For example, config(sampler={'temperature': 1.0}) sets the temperature alone.
  """
  c = ml_collections.ConfigDict(
    {
      'seed': 0,
      'num_rounds': 2,
      'sample_from': 'merged',  # or 'tuned': whose samples a round learns from
      'finetune_from': 'merged',  # or 'base': where a round's fine-tuning starts
      'logger': '',  # 'tensorboard', or 'MODULE:CLASS' of your own; see docs/runs.md
      'model': {
        'path': '',  # Hugging Face directory, .gguf file or WORKDIR@ROUND
        'dtype': 'float32',  # or 'bfloat16': of the computation; params are float32
        # Or 'full', 'none': what the backward pass computes again; 'auto' for imm plan only
        'remat': 'dots',
        'attention': 'auto',  # or 'xla', 'splash' (TPU), 'cudnn' (GPU, bfloat16)
        'random': {},  # with path '': a small model with random weights, see configs/tiny.py
      },
      'tasks': {
        'id': {},  # in domain: what the model improves itself on
        'ood': {},  # out of domain: only measured
        # In domain: where merge.rule 'search' looks for the best alpha; none of its questions is in
        # a test above
        'dev': {},
        'probe': {},  # out of domain: where that alpha may lose no more than search_eps; likewise
      },
      'synthesize': {
        'num_questions': 0,  # train questions a round; 0 takes all
        'max_accepted_per_question': 1,
        'deduplicate': True,  # of a question's completions with the same text, learn from one
        # Or 'accumulate': a round learns from what was accepted in all rounds so far
        'data': 'replace',
        # A model that samples in all rounds, named as model.path is; '' is the round's own
        'teacher': '',
        # Of what a round learns from, that are the data's own solutions; 1 samples nothing
        'real_fraction': 0.0,
        # Sampled together; a run that was cut off samples at most so many again
        'questions_per_chunk': 256,
      },
      'sampler': {
        'num_samples_per_prompt': 8,
        'temperature': 0.7,  # 0 is greedy
        'top_k': 0,  # tokens; 0 keeps all
        'top_p': 1.0,  # probability mass; 1 keeps all
        'num_slots': 64,  # rows decoded at once
        'chunk_steps': 8,  # decode steps between two looks at which rows are done
      },
      'finetune': {
        'num_epochs': 2,
        'batch_size': 8,  # packed rows an optimizer step
        'accumulation_steps': 1,  # parts a batch is computed in
        'max_length': 512,  # tokens a packed row
        # A round stops after the first step with ‖params - base‖ / ‖base‖ at it or above; 0 is off
        'max_drift': 0.0,
        # Of adapters that are trained in place of the params, and merged into them at the end; 0 is
        # off
        'lora_rank': 0,
        'lora_alpha': 16.0,  # an adapter is scaled by lora_alpha / lora_rank
      },
      'optimizer': {
        'learning_rate': 2e-5,  # at the peak
        'warmup_fraction': 0.03,  # of all steps
        'weight_decay': 0.0,
        'b1': 0.9,
        'b2': 0.999,
        'eps': 1e-8,
        'clip_norm': 1.0,
        'keep_opt_state': False,  # over rounds; False starts each round with new ones
      },
      'merge': {
        'method': 'linear',  # or 'dare', 'ties', ...: `imm merge --help` lists them
        # Weight of tuned: 0 is the anchor, 1 is plain self-improvement; or a rule: docs/merging.md
        'alpha': 0.5,
        'drop_rate': 0.2,  # fraction of elements that dare drops
        'density': 0.5,  # fraction of elements that ties, dare_*, della* and breadcrumbs* keep
        'anchor': 'base',  # or 'previous', 'all_previous': what tuned is merged with
        # Alpha itself; or 'layer_adaptive', 'layer_adaptive_shuffled', 'search': docs/configs.md
        'rule': 'fixed',
        'search_eps': 0.0,  # accuracy in tasks.probe, of 1, that the alpha of 'search' may lose
      },
      'evaluate': {
        'tuned': False,  # measure the tuned params too, before the merge
        'num_samples_per_prompt': 0,  # > 0: mean@k, maj@k and pass@k too
        'temperature': 0.7,  # of those samples
        'text_source': '',  # a text file whose negative log-likelihood is measured too
        'text_length': 256,  # tokens it is cut into
      },
      'checkpoint': {
        # Of fine-tuning, and at its end; 0 saves at a notice to stop and at a round's end only
        'every_steps': 100,
      },
      'profile': {
        'num_steps': 0,  # 0 is off
      },
      'mesh': {'data': 1, 'fsdp': -1, 'tensor': 1},  # devices an axis; -1 is the rest
    }
  )
  with c.ignore_type():  # an alpha may be a number, a list or a dict
    c.update(overrides)
  return c


def reasoning_gym(dataset: str, params: dict, **overrides) -> dict:
  """Returns a task that reasoning_gym generates; params are those of that data set."""
  return {
    'family': 'reasoning_gym',
    'dataset': dataset,
    'params': params,
    'train_size': 320,  # questions
    'test_size': 200,
    'train_seed': 0,
    'test_seed': 1_000_000,
    'num_shots': 4,  # solved examples in front of a question, when sampling and when measuring
    'format': 'plain',  # or 'chat': the model's chat template
    'stop': ('\n',),
    'max_new_tokens': 16,
  } | overrides


def dataset(name: str, **overrides) -> dict:
  """Returns a task on a known data set.

  `imm tasks` lists the data sets, and catalog.spec documents the keys.
  """
  return catalog.spec(name, **overrides)


def custom(verifier: str, **overrides) -> dict:
  """Returns a task on rows of your own.

  verifier is 'exact', 'numeric', 'math', 'choice', 'code' or 'MODULE:FUNCTION'.
  """
  return {
    'family': 'custom',
    'verifier': verifier,
    'reward_threshold': 0.5,  # a reward of MODULE:FUNCTION above it is right
    'question': '{question}',  # made of the rows' columns
    # column; of options the right one's text, letter or number from 0; of code, a solution
    'answer': 'answer',
    'solution': '',  # column with worked text that leads to the answer, if there is one
    'options': '',  # column with the list of options, if there is one
    'tests': '',  # column with Python that raises when code is wrong
    # A .json, .jsonl or .csv file, OWNER/NAME:CONFIG:SPLIT of the hub, or tfds:NAME:SPLIT
    'train_source': '',
    'test_source': '',  # '' holds out test_size rows of train_source
    'shots_source': '',  # the shots are its first rows; '' takes them out of train_source
    'train_size': 0,  # questions; 0 takes all
    'test_size': 200,
    'num_shots': 4,
    'seed': 0,  # chooses shots, held-out questions, and those kept under a size
    'scoring': 'generate',  # or 'likelihood': the likeliest option
    'normalize': 'sum',  # or 'per_character': how an option's log-probability is measured
    'format': 'plain',  # or 'chat': the model's chat template
    'frame': 'Question: {question}\nAnswer:',  # of a plain prompt
    'instruction': '',  # under a question in a chat
    'stop': ('\n',),
    'max_new_tokens': 16,
  } | overrides


def synthetic(operation: str, **overrides) -> dict:
  """Returns a task on the digits of two numbers.

  imm_jax/tasks/synthetic.py lists the operations.
  """
  return {
    'family': 'synthetic',
    'operation': operation,
    'num_digits': 1,  # of each number
    'num_pairs': 0,  # questions, test_size of them held out; 0 takes all there are
    'first_pair': 0,  # of these, in an order that seed makes
    'test_size': 20,
    'num_shots': 0,
    'seed': 0,
    'max_new_tokens': 2,
  } | overrides
