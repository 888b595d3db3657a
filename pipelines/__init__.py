"""The Kubeflow pipeline: its definition, its compiled package, a local run, and the pages made from it."""
