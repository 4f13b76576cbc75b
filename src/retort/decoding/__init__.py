"""From a trained student to text."""
