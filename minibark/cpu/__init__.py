"""What makes a CPU fast: operators, reduced precisions, attention and the cache."""
