"""A page to try registered models on: a prompt, a version or two side by side, and where they come from."""
