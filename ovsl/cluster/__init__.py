"""Clusters: signals that stop a run, processes that hang, SLURM's jobs and their scripts.

Nothing here knows of training.
"""

from ovsl.cluster.preemption import StopRequest
from ovsl.cluster.slurm import JobScript, check_launch, job_id, requeue
from ovsl.cluster.watch import Watch

__all__ = ["JobScript", "StopRequest", "Watch", "check_launch", "job_id", "requeue"]
