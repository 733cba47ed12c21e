"""Training: a student with a teacher, a student alone, batch-norm statistics, and the metric of a network."""
