"""The model: its configuration, the Transformer, its layers."""
