"""The Linux kernel as a peer: Debian's own, in a virtual machine without acceleration, on a tap.

The machine is gateway B and host B at once: 192.0.2.2 and 2001:db8:f::2 on its network card face gateway A, 10.2.0.2
and 2001:db8:2::2 on its loopback are the host behind it. It boots once and serves any number of cases.
"""

import secrets
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).parent

# Algorithms as xfrm names them (`crypto/testmgr.c` and `net/xfrm/xfrm_algo.c` of the kernel list them).
CIPHERS = {
    "null": "ecb(cipher_null)",
    "des": "cbc(des)",
    "3des": "cbc(des3_ede)",
    "aes-128-cbc": "cbc(aes)",
    "aes-192-cbc": "cbc(aes)",
    "aes-256-cbc": "cbc(aes)",
    "aes-128-ctr": "rfc3686(ctr(aes))",
    "aes-192-ctr": "rfc3686(ctr(aes))",
    "aes-256-ctr": "rfc3686(ctr(aes))",
    "aes-128-ccm": "rfc4309(ccm(aes))",
    "aes-192-ccm": "rfc4309(ccm(aes))",
    "aes-256-ccm": "rfc4309(ccm(aes))",
    "aes-128-gcm": "rfc4106(gcm(aes))",
    "aes-192-gcm": "rfc4106(gcm(aes))",
    "aes-256-gcm": "rfc4106(gcm(aes))",
    "aes-128-gmac": "rfc4543(gcm(aes))",
    "aes-192-gmac": "rfc4543(gcm(aes))",
    "aes-256-gmac": "rfc4543(gcm(aes))",
    "chacha20-poly1305": "rfc7539esp(chacha20,poly1305)",
}
HASHES = {name: f"hmac({name})" for name in ("md5", "sha1", "sha256", "sha384", "sha512")}
HASHES |= {"aes-xcbc": "xcbc(aes)", "aes-cmac": "cmac(aes)"}

OUTSIDE = {4: ("192.0.2.2/24", "192.0.2.1"), 6: ("2001:db8:f::2/64", "2001:db8:f::1")}
INSIDE = {4: ("10.2.0.2/32", "10.1.0.0/24"), 6: ("2001:db8:2::2/128", "2001:db8:1::/64")}
MAC = "02:ad:17:00:00:02"


class Linux:
    """A running machine."""

    name = "linux"

    def __init__(self, network, directory):
        """Boots on the tap `right` of the wire; `directory` takes its console's output and the socket of its request line."""
        self.console = directory / "linux-console"
        line = directory / "linux-line"
        image = subprocess.run([HERE / "image"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        # Checksums and segments as a wire carries them: the card offers no offloads.
        offloads = ("csum", "guest_csum", "gso", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "host_tso4",
                    "host_tso6", "host_ecn", "host_ufo", "mrg_rxbuf")  # fmt: skip
        card = f"virtio-net-pci,netdev=wire,mac={MAC},romfile=," + ",".join(f"{o}=off" for o in offloads)
        self.process = network.start(
            "wire",
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-nographic"),
            *("-no-reboot", "-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initramfs"),
            *("-append", "console=ttyS0 panic=-1 quiet", "-serial", f"file:{self.console}"),
            # Not a second serial port, which loses characters when the machine is slow. It boots once we listen.
            *("-chardev", f"socket,id=line,path={line},server=on,wait=on", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=line"),
            *("-netdev", "tap,id=wire,ifname=right,script=no,downscript=no", "-device", card),
        )
        deadline = time.monotonic() + 120
        self.line = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.line.connect(str(line))
                break
            except OSError:
                self._alive(deadline)
                time.sleep(0.05)
        self.line.settimeout(60)
        self.answers = self.line.makefile("r", encoding="utf-8", errors="replace")
        self._line()  # "ready"
        self._settle(network)

    def _alive(self, deadline):
        if self.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the Linux peer's machine does not start")

    def _line(self):
        """The next line that the machine says."""
        try:
            line = self.answers.readline()
        except TimeoutError:
            line = ""
        if not line:
            raise RuntimeError(f"the Linux peer does not answer:\n{self.console.read_text(errors='replace')}")
        return line

    def run(self, script, check=True):
        """Runs lines of shell in the machine: what they said, and, unchecked, their exit status."""
        token = secrets.token_hex(8)
        self.line.sendall(f"{token}\n{script}\n{token}\n".encode())
        said = ""
        while not (answer := self._line()).startswith(token):
            said += answer
        status = int(answer.split()[1])
        if check and status:
            raise RuntimeError(f"the Linux peer says {said!r} ({status}) to:\n{script}")
        return said if check else (said, status)

    def ip(self, *lines):
        """Runs lines of iproute2."""
        self.run("/sbin/ip -batch - <<'END'\n" + "\n".join(lines) + "\nEND")

    def _settle(self, network):
        """Addresses, routes, and something to send."""
        self.ip("link set dev eth0 up")
        for version, (address, _) in OUTSIDE.items():
            # Nobody else has it, and until that is found out nothing would arrive there.
            self.ip(f"address add {address} dev eth0" + " nodad" * (version == 6))
        for version, (address, behind) in INSIDE.items():
            self.ip(f"address add {address} dev lo")
            self.ip(f"route add {behind} via {OUTSIDE[version][1]} dev eth0 src {address.split('/')[0]}")
        # A transport-mode policy between neighbours covers their neighbour discovery too, which could then never begin.
        mac = network.inside("ga", "cat", "/sys/class/net/out0/address").stdout.strip()
        self.ip(f"neigh replace {OUTSIDE[6][1]} lladdr {mac} nud permanent dev eth0")
        network.inside("ga", *f"ip neigh replace 2001:db8:f::2 lladdr {MAC} nud permanent dev out0".split())
        self.release = self.run("uname -r").strip()
        self.payload_hash = self.run("head -c 200000 /dev/urandom >/run/payload; sha256sum </run/payload").split()[0]

    @staticmethod
    def cannot(case):
        """Why the kernel cannot do this case, or None."""
        if case.protocol == "ah" and not case.suite.hash:
            return "AH takes hashes only, no AES-GMAC (net/ipv4/ah4.c asks for an ahash)"
        return None

    def configure(self, case):
        """Takes on this case's SAs and policies, and nothing else."""
        here, there = (OUTSIDE[case.outer][0].split("/")[0], OUTSIDE[case.outer][1])
        near, far = INSIDE[case.inner] if case.mode == "tunnel" else (here, there)
        lines = ["xfrm state flush", "xfrm policy flush"]
        in_udp = case.protocol == "espinudp"
        encapsulation = f"encap espinudp 4500 4500 {'::' if case.outer == 6 else '0.0.0.0'} " if in_udp else ""
        if in_udp:
            # The policies are asked about UDP before ESP is found in it; in transport mode they would want it protected.
            lines.append(f"xfrm policy add src {there} dst {here} proto 17 sport 4500 dport 4500 dir in priority 1")
        for direction, path, inside in (
            ("ab", f"src {there} dst {here}", f"src {far} dst {near}"),
            ("ba", f"src {here} dst {there}", f"src {near} dst {far}"),
        ):
            templates = ""
            for layer in case.layers:
                tags = f"reqid {layer.number} mode {layer.mode}"
                # With ESN the window needs the larger structure, which iproute2 makes of any window with this flag.
                flags = ["esn"] * layer.esn
                # Without this flag Linux pads AH over IPv4 to 8 bytes, where RFC 4302 section 3.3.3.2.1 says 4.
                flags += ["align4"] * (layer.protocol == "ah" and layer.ah_padding == "rfc4302")
                # Packets of another family than this SA's own are in the one inside it.
                flags += ["af-unspec"] * bool(templates)
                window = f"replay-window {128 if layer.esn else 32}" + (" flag " + " ".join(flags) if flags else "")
                # The outer one of two has the inner one's packets in it.
                selector = "" if templates else f"sel {inside}"
                lines.append(f"xfrm state add {path} proto {layer.header} spi {layer.spi(direction):#x} {tags} "
                             f"{window} {encapsulation}{algorithms(layer, direction)} {selector}")  # fmt: skip
                templates += f" tmpl {path} proto {layer.header} {tags}"
            policy = "in" if direction == "ab" else "out"
            lines.append(f"xfrm policy add {inside} dir {policy} priority 2{templates}")
        self.ip(*lines)

    def ping(self, size, target):
        """Sends one echo request with `size` bytes; whether it was answered."""
        return self.run(f"ping -c 1 -W 3 -s {size} {target}", check=False)[1] == 0

    def send(self, target):
        """Sends its payload over TCP to port 7000 of `target`."""
        self.run(f"timeout 20 nc {target} 7000 </run/payload", check=False)

    def errors(self):
        """Every counter of the kernel's transforms; all of them count failures."""
        return {name: int(value) for name, value in map(str.split, self.run("cat /proc/net/xfrm_stat").splitlines())}

    @staticmethod
    def errors_of_dummies(count):
        """What the kernel counts for dummy packets: it drops them as it should, and calls each an error of the protocol
        (net/ipv4/esp4.c, esp_input_done2: "Drop dummy packets without any error", by -EINVAL)."""
        return {"XfrmInStateProtoError": count} if count else {}

    def packets(self, case, direction):
        """Packets that the SA of one direction has carried."""
        spi = f"{case.spi(direction):#010x}"
        said = self.run(f"/sbin/ip -s xfrm state list spi {spi}")
        lifetime = said[said.index("lifetime current:"):].splitlines()[1]
        return int(lifetime.split("(bytes), ")[1].split("(packets)")[0])


def algorithms(case, direction):
    """The algorithms and keys of one direction, as iproute2 takes them."""
    cipher, hash = case.suite.cipher, case.suite.hash
    encryption_key, authentication_key = ("0x" + key.hex() if key else '""' for key in case.keys(direction))
    if cipher and not hash:
        return f'aead "{CIPHERS[cipher.name]}" {encryption_key} {8 * case.suite.icv}'
    words = f'auth-trunc "{HASHES[hash.name]}" {authentication_key} {8 * case.suite.icv}'
    return f'enc "{CIPHERS[cipher.name]}" {encryption_key} {words}' if cipher else words
