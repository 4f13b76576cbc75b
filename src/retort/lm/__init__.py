"""Language models: their recipes, the models, and what they say of text."""
