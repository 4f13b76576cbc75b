"""Language models: recipes, models and scoring of texts."""
