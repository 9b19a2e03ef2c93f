"""What `scripts/zoo` is made of: which models, one model's run in a process of its own, many of them, and the table."""
