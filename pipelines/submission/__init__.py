"""What `latentflow submit` is made of: arguments, package and version, images, the connection, following a run."""
