"""What a recipe would train, described without training it."""
