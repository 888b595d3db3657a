"""The errors that a user can cause and mend; the command line prints them as one sentence."""


class LatentflowError(Exception):
    """Something the user can mend: the message names the thing, what was found and what to do."""


class ParamsError(LatentflowError):
    """A parameter is unknown, of a wrong type or out of range."""


class RegistryError(LatentflowError):
    """MLflow could not be reached or refused a request; what was made on disk is kept."""


class RefusedError(LatentflowError):
    """The gate refused a model, and the parameters say that this is an error; the model is registered all the same."""


EXIT_PREEMPTED = 75
"""Exit code of a training that SIGTERM ended after a checkpoint (EX_TEMPFAIL): the same command goes on with it."""
