"""MLflow: runs and their lineage, packaging, versions and aliases, pulling."""
