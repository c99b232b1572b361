"""Sampling completions, and scoring given ones."""
