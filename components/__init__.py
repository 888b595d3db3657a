"""The steps as Kubeflow components, with what only a pipeline needs: one folder each, thin bodies, no logic."""
