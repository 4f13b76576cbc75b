"""Students: the recognisers, with taps for distillation."""
