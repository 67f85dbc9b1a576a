"""Namespaces for one gateway and a foreign peer (drawn in scripts/topology), sockets in them, and host A."""

import ctypes
import hashlib
import os
import signal
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000

# Namespaces that traffic starts from, with their addresses by IP version.
HOST_A = {4: "10.1.0.2", 6: "2001:db8:1::2"}
GATEWAY_A = {4: "192.0.2.1", 6: "2001:db8:f::1"}
HOST_B = {4: "10.2.0.2", 6: "2001:db8:2::2"}
GATEWAY_B = {4: "192.0.2.2", 6: "2001:db8:f::2"}


class Network:
    """Everything that a run makes on this machine; `close` takes it away."""

    def __init__(self):
        self.prefix = f"itp{os.getpid()}"
        self.directory = Path("/run") / self.prefix
        self.processes = []
        self.directory.mkdir(mode=0o700)
        try:
            self.bpffs = self.directory / "bpf"
            self.bpffs.mkdir()
            subprocess.run(["mount", "-t", "bpf", "bpf", self.bpffs], check=True)
            self._topology("up", "1", "tap")
            self.payload = os.urandom(200_000)
        except BaseException:
            self.close()
            raise

    def _topology(self, verb, *more):
        subprocess.run([ROOT / "scripts/topology", verb, self.prefix, *more], check=True)

    def close(self):
        """Ends the processes, the last one first, and removes namespaces and files."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._topology("down")
        subprocess.run(["umount", self.directory / "bpf"], check=False)
        subprocess.run(["rm", "-rf", self.directory], check=True)

    def inside(self, namespace, *words):
        """Runs a program in a namespace to its end; the finished process."""
        command = ["ip", "netns", "exec", f"{self.prefix}-{namespace}", *words]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def start(self, namespace, *words, log=subprocess.DEVNULL):
        """Starts a program in a namespace that runs until `close`."""
        command = ["ip", "netns", "exec", f"{self.prefix}-{namespace}", *words]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def socket(self, namespace, *arguments):
        """A socket that lives in a namespace: it stays there when this process has gone back to its own."""
        with open("/proc/self/ns/net") as home, open(f"/run/netns/{self.prefix}-{namespace}") as there:
            enter(there)
            try:
                return socket.socket(*arguments)
            finally:
                enter(home)

    def ping(self, namespace, size, target):
        """One echo request with `size` bytes: whether it was answered, and whether it was refused as too big."""
        said = self.inside(namespace, "ping", "-n", "-c", "1", "-W", "3", "-s", str(size), target)
        text = said.stdout + said.stderr
        return said.returncode == 0, "Frag needed" in text or "Packet too big" in text

    def forget_path_mtus(self, namespace):
        """What routes have learned of paths so far is forgotten."""
        for version in ("-4", "-6"):
            self.inside(namespace, "ip", version, "route", "flush", "cache")

    def send(self, namespace, target):
        """Sends the payload over TCP to port 7000 of `target`, which answers with its hash; a complaint or None."""
        with self.socket(namespace, family(target), socket.SOCK_STREAM) as client:
            client.settimeout(20)
            client.connect((target, 7000))
            client.sendall(self.payload)
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        if answer.split()[:1] != [hashlib.sha256(self.payload).hexdigest().encode()]:
            return f"TCP to {target}: the other end got something else: {answer!r}"
        return None

    def listen(self, namespace, address):
        """A TCP socket that waits for one connection at port 7000."""
        server = self.socket(namespace, family(address), socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, 7000))
        server.listen()
        server.settimeout(20)
        return server


def enter(namespace):
    """Moves this thread to a network namespace, an open file."""
    if LIBC.setns(namespace.fileno(), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def family(address):
    """The address family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def received(server):
    """The hash of what the next connection sends until it ends."""
    hash = hashlib.sha256()
    connection, _ = server.accept()
    with connection:
        connection.settimeout(20)
        while chunk := connection.recv(1 << 16):
            hash.update(chunk)
    return hash.hexdigest()
