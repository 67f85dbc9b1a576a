"""Gateway A: the real aditd on AF_XDP, told what to do by its configuration and asked by the real adit."""

import json
import os
import subprocess
import time

from interop.matrix import PROTOCOLS
from interop.network import GATEWAY_A, GATEWAY_B

INSIDE = {4: ("10.1.0.0/24", "10.2.0.0/24"), 6: ("2001:db8:1::/64", "2001:db8:2::/64")}


class Gateway:
    """A running daemon in the namespace `ga`."""

    def __init__(self, network, programs):
        self.network = network
        self.adit = programs / "adit"
        self.file = network.directory / "adit.toml"
        self.socket = network.directory / "adit.sock"
        self.log = network.directory / "adit.log"
        self.declared = set()
        self._write("")
        with self.log.open("w") as log:
            self.daemon = network.start("ga", programs / "aditd", "--config", self.file, log=log)
        deadline = time.monotonic() + 20
        while self.ask("status", check=False) is None:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"aditd does not answer:\n{self.log.read_text()}")
            time.sleep(0.05)

    def ask(self, *words, check=True):
        """What `adit WORDS --json` answers; None, unchecked, when it fails."""
        command = [self.adit, "--socket", self.socket, *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(done.stdout)
        if check:
            raise RuntimeError(f"adit {' '.join(words)}: {done.stderr or done.stdout}\n{self.log.read_text()}")
        return None

    def _write(self, tunnels):
        directory = self.network.directory
        # In transport mode it is the gateway itself that speaks.
        host_path = any("transport" in modes for modes in PROTOCOLS.values())
        text = f"""
[engine]
instance = "{self.network.prefix}"
socket = "{self.socket}"
state-dir = "{directory}/state"
bpffs = "{self.network.bpffs}"
allow-legacy = true
{"host-path = true" if host_path else ""}
cores = [0]

[[interface]]
name = "in0"
side = "protected"

[[interface]]
name = "out0"
side = "unprotected"
{tunnels}"""
        with open(os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    def configure(self, case):
        """Takes on this case's tunnel and policy, and nothing else."""
        if case.mode == "transport":
            # The route to the peer has the tunnel's MTU: the one of the case before must be gone.
            self._write("")
            self.ask("reload")
            self._wait_for_routes([])
        self._write(configuration(case))
        # The keys of a case are its own: nobody used them before its first configuration.
        first = case.number not in self.declared
        self.declared.add(case.number)
        names = ",".join(map(name, case.layers))
        self.ask("reload", *(["--fresh", names] if first else []))
        if case.mode == "transport":
            self._wait_for_routes([GATEWAY_B[case.inner] + ("/32" if case.inner == 4 else "/128")])

    def _wait_for_routes(self, routes):
        """Until the gateway's own packets are routed into the host device for these prefixes and no others."""
        deadline = time.monotonic() + 5
        while self.ask("status")["host"]["routes"] != routes:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the host path has other routes than {routes}")
            time.sleep(0.01)

    def hush(self, case):
        """Sends nothing of its own accord any more; the SAs stay."""
        if case.extra == "tfc":
            self._write("".join(line for line in configuration(case).splitlines(True) if not line.startswith("dummy-")))
            self.ask("reload")

    def totals(self):
        """The engine's totals by name, when nothing is in flight any more."""
        deadline = time.monotonic() + 5
        while True:
            totals = {counter["name"]: counter["value"] for counter in self.ask("stats")["total"]}
            if totals["in_flight"] == 0 or time.monotonic() > deadline:
                return totals
            time.sleep(0.02)

    def drops(self):
        """Dropped packets by reason."""
        out = {}
        for drop in self.ask("drops"):
            out[drop["reason"]] = out.get(drop["reason"], 0) + drop["packets"]
        return out


def name(case):
    """The tunnel of a case, or of one of its layers: of its own, or the SAs of the one before would be replaced by its, and go on for a while."""
    return f"peer-{case.number}"


def configuration(case):
    """The tables of a case."""
    near, far = INSIDE[case.inner] if case.mode == "tunnel" else (GATEWAY_A[case.inner], GATEWAY_B[case.inner])
    lines = []
    for layer, outer in zip(case.layers, [*case.layers[1:], None]):
        lines += tunnel(layer, [f'through = "{name(outer)}"'] if outer else [])
    lines += [
        "[[policy]]",
        'name = "peer"',
        'action = "protect"',
        f'tunnel = "{name(case.layers[0])}"',
        f'local = ["{near}"]',
        f'remote = ["{far}"]',
    ]
    return "\n".join(lines) + "\n"


def tunnel(case, more):
    """The lines of one tunnel."""
    suite = case.suite
    lines = [
        "[[tunnel]]",
        f'name = "{name(case)}"',
        f'local = "{GATEWAY_A[case.outer]}"',
        f'remote = "{GATEWAY_B[case.outer]}"',
        f"esn = {str(case.esn).lower()}",
        *more,
    ]
    if case.protocol == "ah":
        lines += ['protocol = "ah"', f'ah-padding = "{case.ah_padding}"']
    if case.protocol == "espinudp":
        lines.append("udp-port = 4500")
    if case.mode == "transport":
        lines.append('mode = "transport"')
    if suite.cipher:
        lines.append(f'encryption = "{suite.cipher.name}"')
    if suite.hash:
        lines.append(f'authentication = "{suite.hash.name}"')
    if suite.cipher and not suite.hash:
        lines.append(f"icv-length = {suite.icv}")
    if case.extra == "tfc":
        lines += ['tfc-padding = "mtu"', "dummy-rate = 20", 'dummy-when = "always"']
    for table, direction in (("inbound", "ba"), ("outbound", "ab")):
        lines += [f"[tunnel.{table}]", f"spi = {case.spi(direction):#x}"]
        for kind, key in zip(("encryption", "authentication"), case.keys(direction)):
            if key:
                lines.append(f'{kind}-key = "hex:{key.hex()}"')
    return lines
