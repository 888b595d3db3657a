"""The names of the tags by which runs and versions are found and judged."""

MODEL_DIGEST = "latentflow.model_digest"
EVALUATION = "latentflow.evaluation"
EVALUATION_RUN = "latentflow.evaluation_run_id"
JUDGED = "latentflow.judged"
METRIC = "latentflow.metric."
LEDGER = "latentflow.ledger"

STATUS = "validation_status"
CHAMPION = "latentflow.gate.champion"
RULES = "latentflow.gate.rules"
REASONS = "latentflow.gate.reasons"
