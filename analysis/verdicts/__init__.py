"""Whether an arm is worth its cost: what is asked of a directory, the answer, its words, and what to run next."""
