"""Releases of trained models: compact weights and a model card."""
