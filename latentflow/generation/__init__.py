"""From a model to pictures on disk: what to draw, drawing, and files that say how they were made."""
