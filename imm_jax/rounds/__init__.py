"""A run: its rounds, and what they leave."""
