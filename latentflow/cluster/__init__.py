"""Training on many nodes of a Kubernetes cluster: the job, and the small process that waits for it."""
