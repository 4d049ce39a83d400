"""Where pieces of prompts end."""

from stretto.core.policy import Job

ALIGN = 64  # tokens: recurrent kernels anchor their chunks at multiples of so many


def aligned(job: Job, budget: int) -> int:
    """As many rows as the budget leaves, ending at a multiple of `ALIGN` where it reaches one."""
    rows = min(job.need, budget)
    if rows < job.need and (job.held + rows) // ALIGN * ALIGN > job.held:
        rows = (job.held + rows) // ALIGN * ALIGN - job.held
    return rows
