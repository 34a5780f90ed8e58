"""Two nodes on one machine: namespaces for network, host name, processes and mounts, joined by a link of a chosen
rate, and mpirun across them. Needs root. As a program:

python tests/support/two_nodes.py --rate 1gbit --ranks 2 -- python train_cifar_ffcv_cgx.py ...
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

TOOLS = ("ip", "tc", "unshare", "nsenter", "mpirun")
NETWORK = "10.77.0.0/24"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
LINK = "wire"  # on both
SHAPED = ("root", "tbf", "burst", "256kb", "latency", "50ms", "rate")


def why_not():
    """What is missing for this; '' if nothing is."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root"
    words = ["unshare", "--net", "--pid", "--fork", "tc", "qdisc", "add", "dev", "lo", *SHAPED, "1gbit"]
    done = subprocess.run(words, capture_output=True, check=False)
    return "" if done.returncode == 0 else "no namespaces with links of a chosen rate can be made here"


class TwoNodes:
    """`with TwoNodes("1gbit") as nodes: nodes.mpirun(2, [command, ...], environment, log)`; at its end everything that
    was started is ended."""

    def __init__(self, rate):
        self.rate, self._processes = rate, []
        self.folder = Path(tempfile.mkdtemp(prefix="two_nodes"))

    def __enter__(self):
        try:
            self._pids = [self._node(name) for name in ("node-a", "node-b")]
            a, b = self._pids
            self._run("ip", "link", "add", LINK, "netns", a, "type", "veth", "peer", "name", LINK, "netns", b)
            for pid, address in zip(self._pids, ADDRESSES, strict=True):
                self._inside(pid, "ip", "addr", "add", f"{address}/24", "dev", LINK)
                self._inside(pid, "ip", "link", "set", "lo", "up")
                self._inside(pid, "tc", "qdisc", "add", "dev", LINK, *SHAPED, self.rate)
            self.set_link("up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def set_link(self, state):
        for pid in self._pids:
            self._inside(pid, "ip", "link", "set", LINK, state)

    def start(self, node, words, environment, output):
        """A process on node 0 or 1."""
        return self._start(self._pids[node], words, environment, output)

    def mpirun(self, ranks, command, environment, output=None):
        """Starts the command with that many ranks on each node; the process of mpirun."""
        agent = self.folder / "agent"  # mpirun's ssh: it leaves the command where _serve finds it
        agent.write_text(f'#!/bin/sh\nshift\nprintf %s "$*" >{agent}.new && mv {agent}.new {agent}.command\n')
        agent.chmod(0o755)
        words = ["mpirun", "-np", 2 * ranks, "--host", ",".join(f"{address}:{ranks}" for address in ADDRESSES)]
        words += ["--bind-to", "none", "--mca", "plm", "rsh", "--mca", "plm_rsh_agent", agent]
        words += ["--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", NETWORK]
        words += ["--mca", "oob_tcp_if_include", NETWORK, "--mca", "orte_tmpdir_base", self.folder, *command]
        started = self._start(self._pids[0], words, environment, output)
        threading.Thread(target=self._serve, args=(started, Path(f"{agent}.command"), environment), daemon=True).start()
        return started

    def _serve(self, mpirun, command, environment):
        while mpirun.poll() is None and not command.exists():
            threading.Event().wait(0.02)
        if command.exists():
            self._start(self._pids[1], ["sh", "-c", command.read_text()], environment, subprocess.DEVNULL)

    def _start(self, pid, words, environment, output):
        enter = ["nsenter", "-t", str(pid), "--net", "--uts", "--pid", "--mount", "--"]
        process = subprocess.Popen(
            [*enter, *map(str, words)], env=environment, stdout=output, stderr=output, start_new_session=True
        )
        self._processes.insert(0, process)
        return process

    def _node(self, name):
        """The first process of a node's namespaces: when it ends, all others do."""
        words = ["unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        words += ["sh", "-c", f"hostname {name} && echo ready && exec sleep infinity"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._processes.append(process)
        if process.stdout.readline() != "ready\n":
            raise OSError(f"{name} could not be made")
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())

    def _inside(self, pid, *words):
        self._run("nsenter", "-t", pid, "--net", "--", *words)

    def _run(self, *words):
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rate", default="1gbit", help="of the link, as tc writes it")
    parser.add_argument("--ranks", type=int, default=2, help="on each node")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if why := why_not():
        sys.exit(why)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with TwoNodes(arguments.rate) as nodes:
        sys.exit(nodes.mpirun(arguments.ranks, arguments.command, {**os.environ, **root}).wait())


if __name__ == "__main__":
    main()
