#!/bin/sh
# Makes the environments of the programs that sampling.py, finetune.py and loading.py compare with: DIR/hf,
# DIR/tunix and DIR/llama, which is compiled here (half an hour on two cores).
set -eu
dir=${1:?usage: make_peers.sh DIR}
python3 -m venv "$dir/hf"
"$dir/hf/bin/pip" install --quiet torch==2.13.0
"$dir/hf/bin/pip" install --quiet transformers trl lm-eval datasets safetensors jinja2
python3 -m venv "$dir/tunix"
"$dir/tunix/bin/pip" install --quiet google-tunix==0.1.7
python3 -m venv "$dir/llama"
CMAKE_ARGS=-DLLAVA_BUILD=OFF "$dir/llama/bin/pip" install --quiet llama-cpp-python numpy
