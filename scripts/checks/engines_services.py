"""Slurm, Ray and S3 on this machine: real daemons in a temporary folder, all stopped at the end.

Each is a context manager. Slurm is Debian's ``slurm-wlm`` (munge, slurmctld, slurmd), started by
hand as root with a configuration of its own; Ray is ``ray start`` twice, a head and a second node;
S3 is the server of ``moto``, which speaks the protocol to any client.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
RAY_VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
CPUS = 4
"""As many tasks at once as the node of Slurm says it has, whatever the machine has."""
SLURM_CONF = """
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(done: Callable[[], Any], what: str, seconds: float = 180) -> Any:
    """The first true value of ``done``."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        if time.monotonic() > deadline:
            raise SystemExit(f"Timed out after {seconds:.0f} seconds of waiting for {what}.")
        time.sleep(0.1)
    return found


def daemon(command: list[Any], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A process with its own process group, so that everything it starts can be ended with it."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], at_once: bool = False) -> None:
    """End a daemon and its group."""
    family = [] if process.poll() is not None else psutil.Process(process.pid).children(True)
    if not at_once:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


# Slurm


def has_slurm() -> bool:
    names = ("munged", "slurmctld", "slurmd", "sbatch")
    return os.geteuid() == 0 and all(shutil.which(name, path=_path()) for name in names)


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A cluster of one node; inside the block, ``sbatch`` and the other commands use it."""
    folder.mkdir(mode=0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host, ports = socket.gethostname(), free_ports(2)
    conf.write_text(SLURM_CONF.format(host=host, ports=ports, folder=folder, cpus=CPUS))
    munge = ["munged", "--foreground", "--force", "--num-threads=2"]
    munge += [f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    before = {name: os.environ.get(name) for name in ("PATH", "SLURM_CONF")}
    os.environ.update(PATH=_path(), SLURM_CONF=str(conf))
    with ExitStack() as stack:
        stack.callback(_restore, before)
        for command in (munge, ["slurmctld", "-D", "-f", conf], ["slurmd", "-D", "-f", conf]):
            started = daemon(command, folder / "daemons.log")
            stack.callback(end, started)
            if command is munge:
                wait_until((folder / "munge.socket").exists, "munged")
        wait_until(lambda: "idle" in words("sinfo", "-h", "-o", "%T"), "the node of Slurm")
        try:
            yield
        finally:
            words("scancel", "--user=root")
            wait_until(lambda: not jobs(), "Slurm to cancel its jobs", 60)


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def words(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


def jobs() -> str:
    """The jobs that are not done: one line each, with id and state."""
    return words("squeue", "-h", "-r", "-o", "%F_%K %T")


# Ray


@contextmanager
def ray_cluster(folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A head and a second node; in the block RAY_ADDRESS names them. One CPU each."""
    folder.mkdir()
    common = ["--num-cpus", 1, "--object-store-memory", 100_000_000, "--block"]
    common += ["--disable-usage-stats"]
    head_flags = ["--head", "--port", free_ports(1)[0], "--include-dashboard", "false"]
    nodes: list[subprocess.Popen[bytes]] = []
    before = {name: os.environ.get(name) for name in RAY_VARIABLES}
    # Set explicitly: by default, a head may turn authentication on and a node may not.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        command = [BIN / "ray", "start", *head_flags, "--temp-dir", folder / "t", *common]
        nodes.append(daemon(command, folder / "head.log"))
        line = "ray start --address='"
        wait_until(lambda: line in (folder / "head.log").read_text(), "the head of Ray")
        address = (folder / "head.log").read_text().split(line)[1].split("'")[0]
        command = [BIN / "ray", "start", "--address", address, *common]
        nodes.append(daemon(command, folder / "node.log"))
        started = "Ray runtime started"
        wait_until(lambda: started in (folder / "node.log").read_text(), "the node of Ray")
        os.environ["RAY_ADDRESS"] = address
        yield nodes
    finally:
        for node in reversed(nodes):
            end(node)
        _restore(before)


def ray_workers(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of a node that run a task."""
    found = []
    for one in psutil.Process(node.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if " ".join(one.cmdline()).startswith("ray::RankWorker.run_for_rank"):
                found.append(one)
    return [one for one in found if one.parent() not in found]


# S3


@contextmanager
def s3() -> Iterator[None]:
    """An S3 server with one empty bucket, ``s3://bucket``, which every client finds."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        bucket().mkdir("bucket")
        yield
    finally:
        server.stop()


def bucket() -> Any:
    """A client that remembers no listing."""
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)
