"""Is the model any good: metrics with their protocol, drawn pictures beside real ones, one report."""
