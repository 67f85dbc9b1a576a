"""What is tried: every case is a peer, a protocol, a mode, a family, ESN or not, and algorithms.

The tables here are the whole knowledge of the matrix: a protocol, a mode or an algorithm more is a line more.
"""

import hashlib
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Cipher:
    """An encryption algorithm as adit calls it; lengths in bytes, the key's with its salt."""

    name: str
    key: int
    salt: int = 0
    icvs: tuple = ()  # of an AEAD, which authenticates itself


@dataclass(frozen=True)
class Hash:
    """An authentication algorithm as adit calls it; lengths in bytes."""

    name: str
    key: int
    icv: int


CIPHERS = (
    Cipher("null", 0),
    Cipher("des", 8),
    Cipher("3des", 24),
    Cipher("aes-128-cbc", 16),
    Cipher("aes-192-cbc", 24),
    Cipher("aes-256-cbc", 32),
    Cipher("aes-128-ctr", 20, 4),
    Cipher("aes-192-ctr", 28, 4),
    Cipher("aes-256-ctr", 36, 4),
    Cipher("aes-128-ccm", 19, 3, (8, 12, 16)),
    Cipher("aes-192-ccm", 27, 3, (8, 12, 16)),
    Cipher("aes-256-ccm", 35, 3, (8, 12, 16)),
    Cipher("aes-128-gcm", 20, 4, (8, 12, 16)),
    Cipher("aes-192-gcm", 28, 4, (8, 12, 16)),
    Cipher("aes-256-gcm", 36, 4, (8, 12, 16)),
    Cipher("aes-128-gmac", 20, 4, (16,)),
    Cipher("aes-192-gmac", 28, 4, (16,)),
    Cipher("aes-256-gmac", 36, 4, (16,)),
    Cipher("chacha20-poly1305", 36, 4, (16,)),
)

HASHES = (
    Hash("md5", 16, 12),
    Hash("sha1", 20, 12),
    Hash("sha256", 32, 16),
    Hash("sha384", 48, 24),
    Hash("sha512", 64, 32),
    Hash("aes-xcbc", 16, 12),
    Hash("aes-cmac", 16, 12),
)

# Algorithms for ESP in UDP.
IN_UDP = ("null + sha384", "aes-256-cbc + sha256", "aes-128-gcm ICV 16", "chacha20-poly1305 ICV 16")

# Protocol -> the modes that adit offers for it.
PROTOCOLS = {protocol: ("tunnel", "transport") for protocol in ("esp", "espinudp", "ah")}

# Mode -> families, as inner in outer; a transport-mode packet has one family.
FAMILIES = {"tunnel": ("4in4", "6in4", "4in6", "6in6"), "transport": ("4", "6")}


# What is tried beside the matrix, and where.
EXTRAS = {
    # Every packet padded to the tunnel's MTU, and dummy packets among them.
    "tfc": (("esp", "tunnel", "4in4", False), ("esp", "tunnel", "6in6", True)),
}


@dataclass(frozen=True)
class Suite:
    """Algorithms that work together; no cipher in AH, no hash beside an AEAD."""

    cipher: Cipher | None
    hash: Hash | None
    icv: int

    def __str__(self):
        parts = [self.cipher and self.cipher.name, self.hash and self.hash.name]
        return " + ".join(filter(None, parts)) if self.hash else f"{self.cipher.name} ICV {self.icv}"


@dataclass(frozen=True)
class Case:
    """One cell of the matrix. Its number makes its SPIs, its keys are its own."""

    number: int
    peer: str
    protocol: str
    mode: str
    family: str
    esn: bool
    suite: Suite
    extra: str = ""  # of EXTRAS

    def __str__(self):
        esn = "ESN" if self.esn else "-"
        return f"{self.protocol:<8} {self.mode:<9} {self.family:<4} {esn:<3} {self.suite} {self.extra}".rstrip()

    @property
    def header(self):
        """The protocol of its packets, in UDP or not."""
        return "ah" if self.protocol == "ah" else "esp"

    @property
    def ah_padding(self):
        """How AH over IPv4 is padded: as the RFC says in one half of the cases, as Linux likes it in the other."""
        return "linux" if self.esn else "rfc4302"

    @property
    def inner(self):
        """IP version of the packets inside."""
        return int(self.family[0])

    @property
    def outer(self):
        """IP version of the packets on the wire."""
        return int(self.family[-1])

    def spi(self, direction):
        """SPI of packets `ab`, from A to B, or `ba`."""
        return 0xAD000000 + 2 * self.number + (direction == "ba")

    def keys(self, direction):
        """Encryption and authentication key, used by nobody else and the same in every run."""

        def key(kind, length):
            name = f"{self.number} {self.peer} {self} {direction} {kind}".encode()
            return hashlib.shake_256(name).digest(length)

        return (
            key("encryption", self.suite.cipher.key if self.suite.cipher else 0),
            key("authentication", self.suite.hash.key if self.suite.hash else 0),
        )


def suites(protocol):
    """Every combination of algorithms that makes sense."""
    if protocol == "ah":
        gmacs = [Suite(cipher, None, icv) for cipher in CIPHERS for icv in cipher.icvs if "gmac" in cipher.name]
        return gmacs + [Suite(None, hash, hash.icv) for hash in HASHES]
    if protocol == "espinudp":
        # What is in UDP is ESP like any other: some that differ in shape will do.
        return [suite for suite in suites("esp") if str(suite) in IN_UDP]
    out = []
    for cipher in CIPHERS:
        out += [Suite(cipher, None, icv) for icv in cipher.icvs]
        out += [Suite(cipher, hash, hash.icv) for hash in HASHES if not cipher.icvs]
    return out


def shapes(protocol):
    """Every mode, family and ESN setting."""
    modes = PROTOCOLS[protocol]
    return [shape for mode in modes for shape in product((mode,), FAMILIES[mode], (False, True))]


def every_case(peer):
    """The whole matrix of a peer."""
    cells = [
        (protocol, *shape, suite)
        for protocol in PROTOCOLS
        for shape in shapes(protocol)
        for suite in suites(protocol)
    ]
    gcm = Suite(next(cipher for cipher in CIPHERS if cipher.name == "aes-128-gcm"), None, 16)
    cells += [(*shape, gcm, extra) for extra, places in EXTRAS.items() for shape in places]
    return [Case(number, peer, *cell) for number, cell in enumerate(cells, 1)]


def sample(cases):
    """The fixed part of the matrix that CI runs: every shape and every suite of each protocol at least once.

    The n-th suite meets the n-th shape, round and round, until both lists have been walked through.
    """
    chosen = []
    for protocol in PROTOCOLS:
        ours = [case for case in cases if case.protocol == protocol and not case.extra]
        shape = lambda case: (case.mode, case.family, case.esn)
        all_shapes = list(dict.fromkeys(map(shape, ours)))
        all_suites = list(dict.fromkeys(case.suite for case in ours))
        by_cell = {(shape(case), case.suite): case for case in ours}
        for n in range(max(len(all_shapes), len(all_suites))):
            # One more at every turn, so that lists of related lengths do not meet in the same pairs.
            cell = all_shapes[(n + n // len(all_shapes)) % len(all_shapes)], all_suites[n % len(all_suites)]
            if cell in by_cell:
                chosen.append(by_cell[cell])
        for part in ("mode", "family", "esn", "suite"):
            missed = {getattr(case, part) for case in ours} - {getattr(case, part) for case in chosen}
            assert not missed, f"the sample misses {part} {', '.join(map(str, missed))} of {protocol}"
    return chosen + [case for case in cases if case.extra]
