"""Real hosts on one machine: each with its own network, mounts, processes, host name and sshd. Needs root.

    python tests/multinode/hosts.py FOLDER       two hosts until Ctrl-C; prints how to enter them

A host is a set of namespaces (net, mount, uts, ipc, pid) on a bridge that leads nowhere else. The disk is shared by
all hosts, as by NFS; /dev/shm, /etc/hosts and ~/.ssh are their own.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = {
    **{"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "pdsh": "pdsh"},
    **{"ip": "iproute2", "pgrep": "procps", "nsenter": "util-linux", "unshare": "util-linux"},
}
"""What has to be installed, with its Debian package."""
_INIT = """
hostname node{i}
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind {folder}/hosts.{i} /etc/hosts
mount --bind {folder}/ssh {home}/.ssh
{sshd} -D -f {folder}/sshd_config -E {folder}/sshd.{i}.log &
echo $! > {folder}/sshd.{i}.pid
trap 'exit 0' TERM
while :; do wait -n || sleep 0.1; done
"""
_SSHD = """
HostKey {folder}/hostkey
PidFile none
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
"""
_SSH = """
Host *
  UserKnownHostsFile {folder}/ssh/known_hosts
  LogLevel ERROR
"""
_NAMESPACES = ("-m", "-u", "-i", "-n", "-p")


def missing() -> str | None:
    """Why there can be no hosts here, or None."""
    packages = sorted({package for program, package in PROGRAMS.items() if shutil.which(program, path=_path()) is None})
    if os.geteuid() != 0:
        return "hosts out of namespaces need root"
    if packages:
        return f"hosts out of namespaces need the Debian packages {' '.join(packages)}"
    spaces = ("--mount", "--uts", "--ipc", "--pid", "--net", "--fork")
    trial = ["unshare", *spaces, "ip", "link", "add", "name", "veth0", "type", "veth", "peer", "name", "veth1"]
    tried = subprocess.run(trial, capture_output=True, env={**os.environ, "PATH": _path()}, check=False)
    return f"no namespaces here: {tried.stderr.decode().strip()}" if tried.returncode else None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Hosts:
    """node0, node1, ... until the end of the `with`."""

    def __init__(self, folder: Path, count: int = 2):
        self.folder, self.count = folder, count
        self._name = f"rlhf{os.getpid()}n"
        self._pids: dict[int, int] = {}

    def __enter__(self) -> "Hosts":
        try:
            self._write_files()
            self._ip("netns", "add", f"{self._name}sw")
            self._ip("-n", f"{self._name}sw", "link", "add", "br0", "type", "bridge")
            self._ip("-n", f"{self._name}sw", "link", "set", "br0", "up")
            for i in range(self.count):
                self.start(i)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        for i in list(self._pids):
            self.kill(i)
        self._ip("netns", "del", f"{self._name}sw", check=False)

    def start(self, i: int) -> None:
        """Power a host on."""
        space, switch = f"{self._name}{i}", f"{self._name}sw"
        self._ip("netns", "add", space)
        card = ("eth0", "address", f"02:00:00:00:00:{i:02x}", "netns", space)  # the same after a new start
        self._ip("link", "add", *card, "type", "veth", "peer", "name", f"port{i}", "netns", switch)
        self._ip("-n", switch, "link", "set", f"port{i}", "master", "br0", "up")
        self._ip("-n", space, "addr", "add", f"{address(i)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._ip("-n", space, "link", "set", device, "up")
        init = _INIT.format(i=i, folder=self.folder, home=Path.home(), sshd=shutil.which("sshd", path=_path()))
        flags = ("--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
        with (self.folder / f"init.{i}.log").open("w") as log:
            command = ["ip", "netns", "exec", space, "unshare", *flags, "bash", "-c", init, "host"]
            outside = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(lambda: _child(outside.pid) is not None)
        self._pids[i] = _child(outside.pid)
        wait_for(lambda: self.run(i, "ssh", f"node{i}", "true").returncode == 0)

    def kill(self, i: int) -> None:
        """Pull a host's plug."""
        os.kill(self._pids.pop(i), signal.SIGKILL)  # the first process of its pid namespace
        self._ip("netns", "del", f"{self._name}{i}", check=False)
        self._ip("-n", f"{self._name}sw", "link", "del", f"port{i}", check=False)  # the system does so later

    def link(self, i: int, state: str) -> None:
        """Pull a host's network cable (`down`), or plug it in again (`up`)."""
        self._ip("-n", f"{self._name}sw", "link", "set", f"port{i}", state)

    def stop_sshd(self, i: int) -> None:
        """End a host's sshd; connections that are open stay."""
        self.run(i, "bash", "-c", f"kill $(cat {self.folder}/sshd.{i}.pid)", check=True)

    def command(self, i: int, *arguments: str) -> list[str]:
        """`arguments` as a command that runs on a host, in the current folder."""
        there = ("env", f"--chdir={Path.cwd()}")  # nsenter --wd would leave it on the mount outside
        return ["nsenter", "-t", str(self._pids[i]), *_NAMESPACES, "--", *there, *arguments]

    def run(self, i: int, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command on a host."""
        options = {"timeout": 60, **options}
        return subprocess.run(self.command(i, *arguments), capture_output=True, text=True, **options)

    def processes(self, i: int) -> list[str]:
        """Command lines of what runs on a host beside its own services; nothing on one that is off."""
        if i not in self._pids:
            return []
        listed = self.run(i, "ps", "-eo", "args", "--no-headers", check=True).stdout.splitlines()
        own = ("bash -c", "sshd: ", "sleep 0.1", "ps -eo args")
        return [line for line in listed if not line.startswith(own) and "sshd -D" not in line]

    def _write_files(self) -> None:
        ssh = self.folder / "ssh"
        ssh.mkdir(mode=0o700, parents=True)
        for folder in (Path("/run/sshd"), Path.home() / ".ssh"):
            folder.mkdir(mode=0o700, exist_ok=True)
        for key in (ssh / "id_ed25519", self.folder / "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
        public = (self.folder / "hostkey.pub").read_text()
        names = [f"node{i},{address(i)},127.0.1.1" for i in range(self.count)]
        (ssh / "known_hosts").write_text("".join(f"{name} {public}" for name in names))
        (ssh / "config").write_text(_SSH.format(folder=self.folder))
        (self.folder / "sshd_config").write_text(_SSHD.format(folder=self.folder))
        known = "".join(f"{address(i)} node{i}\n" for i in range(self.count))
        for i in range(self.count):  # as Debian writes it: a host's own name is a loopback address
            (self.folder / f"hosts.{i}").write_text(f"127.0.0.1 localhost\n127.0.1.1 node{i}\n{known}")

    def _ip(self, *arguments: str, check: bool = True) -> None:
        subprocess.run(["ip", *arguments], check=check, capture_output=True, env={**os.environ, "PATH": _path()})


def address(i: int) -> str:
    """Address of a host."""
    return f"10.77.0.{i + 1}"


def _child(pid: int) -> int | None:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return int(found[0]) if found else None


def wait_for(done: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return once it is done. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def _until_interrupted(folder: Path) -> None:
    with Hosts(folder) as hosts:
        for i in range(hosts.count):
            print(f"node{i}: {shlex.join(hosts.command(i, 'bash'))}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    if missing():
        sys.exit(missing())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    _until_interrupted(Path(sys.argv[1]).resolve())
