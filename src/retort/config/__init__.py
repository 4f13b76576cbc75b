"""Recipes: the schema, reading, and checks."""
