"""The six steps and their prerequisites as Kubeflow components: one folder each, thin bodies, no logic."""
