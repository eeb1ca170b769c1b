"""Labels for the other stages: demonstrations, samples to be ranked, and rankings."""
