"""Clusters: signals that stop a run, SLURM's jobs and their scripts. Nothing here knows of training."""

from ovsl.cluster.preemption import StopRequest
from ovsl.cluster.slurm import JobScript, check_launch, job_id, requeue

__all__ = ["JobScript", "StopRequest", "check_launch", "job_id", "requeue"]
