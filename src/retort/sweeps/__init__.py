"""Many trainings as one list: at once, resumed, and in one table."""
