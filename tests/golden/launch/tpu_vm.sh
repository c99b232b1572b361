#!/bin/bash
set -u
state() { gcloud compute tpus queued-resources describe imm --project=P --zone=Z --format='value(state.state)' 2>/dev/null; }
remove() { gcloud compute tpus queued-resources delete imm --project=P --zone=Z --force --quiet 2>/dev/null; }
trap remove EXIT  # a slice that nothing runs on costs as much as one that works
while true; do
  remove
  gcloud compute tpus queued-resources create imm --node-id=imm --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --project=P --zone=Z --spot || exit 1
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED|SUSPENDED) echo "imm: $(state)" >&2; remove; sleep 60; gcloud compute tpus queued-resources create imm --node-id=imm --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --project=P --zone=Z --spot || exit 1;; esac
    sleep 20
  done
  gcloud compute tpus tpu-vm ssh imm --project=P --zone=Z --worker=all --command='rm -rf imm && git clone --depth=1 https://example.com/imm_jax imm && cd imm && pip install --quiet '"'"'.[tpu]'"'"' && exec imm run --config=configs/gsm8k_qwen25_0p5b.py --workdir=gs://bucket/run'
  code=$?
  if [ $code = 0 ] || { [ $code = 1 ] && [ "$(state)" = ACTIVE ]; }; then exit $code; fi
  echo "imm: exit code $code, $(state); again" >&2
done
