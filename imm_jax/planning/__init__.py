"""Estimates the resources that a run would take, before it starts."""
