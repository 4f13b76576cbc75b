"""Trained models made small, to be handed on: float16 weights and a model card."""
