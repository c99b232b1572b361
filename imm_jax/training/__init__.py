"""Fine-tuning: packed batches, loss, optimizer, train step, LoRA."""
