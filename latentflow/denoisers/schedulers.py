"""The diffusers schedulers that iterate as our definitions do."""

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler


def flow_dpm_solver(shift: float) -> DPMSolverMultistepScheduler:
    """Flow matching's Euler step as a first-order DPM-Solver, for pipelines that scale their initial noise."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=1
    )


def flow_euler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    """Flow matching's Euler step with untruncated timesteps."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)
