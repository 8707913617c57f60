"""A SLURM of our own on this machine: two nodes, nothing outside a temporary folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")

# A job that is queued again waits until its credential has expired: two minutes, where nothing is said.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=10
JobRequeue=1
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
NodeName=n[0-1] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2 RealMemory=2000
PartitionName=all Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """A running private cluster."""

    folder: Path

    def call(self, *command: str, script: str | None = None) -> str:
        """Run a program of SLURM and give what it prints."""
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def field(self, job: str, name: str) -> str:
        """Give one field of a job, such as its `JobState`."""
        shown = self.call("scontrol", "show", "job", job)
        return next((w.partition("=")[2] for w in shown.split() if w.startswith(f"{name}=")), "")

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 400) -> None:
        """Wait for a condition, and show jobs, nodes and the end of all outputs where it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                files = [*self.folder.glob("**/*.out"), self.folder / "slurmctld.log"]
                outputs = [file.read_text()[-4000:] for file in files if file.exists()]
                state = [self.call("scontrol", "show", "jobs"), self.call("sinfo", "-N", "-o", "%N %T %E")]
                pytest.fail("\n".join([f"waited {seconds} s for {what}", *outputs, *state]))
            time.sleep(0.5)


def _free_ports(count: int) -> int:
    """The first of some neighbouring ports that are free."""
    for first in range(21000 + os.getpid() % 5000, 60000, 7):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def slurm(monkeypatch_session: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """Start munged, slurmctld and two slurmd; stop them by their pid files."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}): `make test-slurm` says how")
    monkeypatch_session.setenv("PATH", path)
    # The path of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "state").mkdir()
    host, first = socket.gethostname().split(".")[0], _free_ports(3)
    monkeypatch_session.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    ports = {"controller": first, "first": first + 1, "second": first + 2}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser(), **ports))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(256))
    key.chmod(0o600)
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    daemons = [["munged", "--force", f"--socket={folder}/munge.socket", *munge], ["slurmctld"]]
    daemons += [["slurmd", "-N", node] for node in ("n0", "n1")]
    pids = ["slurmd-n1.pid", "slurmd-n0.pid", "slurmctld.pid", "munge.pid"]
    try:
        for command in daemons:
            subprocess.run(command, check=True, timeout=60)
        cluster = Slurm(folder)
        cluster.wait(lambda: cluster.call("sinfo", "-h", "-o", "%t").split() == ["idle"], "two idle nodes", 60)
        yield cluster
    finally:
        for name in pids:
            with contextlib.suppress(OSError, ValueError):
                _end(int((folder / name).read_text()))
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: int, seconds: float = 20) -> None:
    """Stop a daemon and wait until it is gone, since it writes its state last."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        os.kill(process, signal.SIGTERM)
        time.sleep(0.2)


@pytest.fixture(scope="session")
def monkeypatch_session() -> Iterator[pytest.MonkeyPatch]:
    """Changes of the environment that last as long as the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch
