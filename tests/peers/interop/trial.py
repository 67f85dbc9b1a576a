"""One case tried: traffic both ways, then every count of every witness compared."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from interop import network
from interop.icv import inside
from interop.wire import Packet, judge

SIZES = (100, 1390)
NO_NEXT_HEADER = 59
# Of the larger ones, both ends fragment after encryption what is then too large: Linux an IPv4 packet that may be
# fragmented, and both every packet in transport mode (RFC 4303 section 3.3.4), of which adit puts together what its own
# kernel, which knows the MTU of the route, has fragmented before.


def control(case, net, gateway, peer, listener):
    """Both ends know different keys: nothing may pass, and both must say why. Otherwise a pass means nothing."""
    # A number of its own, for SPIs and keys of its own.
    trial = Trial(replace(case, number=0, extra=""), net, gateway, peer, listener)
    gateway.configure(trial.case)
    peer.configure(replace(trial.case, peer="nobody"))
    before = trial._counters()
    namespace, near, far = trial._ends
    if net.ping(namespace, SIZES[0], far)[0] or peer.ping(SIZES[0], near):
        raise RuntimeError("the control failed: a packet under a wrong key was accepted")
    after = trial._counters()
    drops, errors = (sum(new.values()) - sum(old.values()) for old, new in zip(before[1:], after[1:]))
    if drops != 1 or errors != 1:
        raise RuntimeError(f"the control failed: adit dropped {drops} packets, the peer {errors}, both should drop one")


class Trial:
    """What the witnesses saw of one case; `faults` says in words what was wrong."""

    def __init__(self, case, net, gateway, peer, listener):
        self.case, self.net, self.gateway, self.peer, self.listener = case, net, gateway, peer, listener
        self.faults = []
        self.refused = 0  # echo requests answered with "too big"
        self.packets = {"ab": [], "ba": []}
        self.absorbed = 0  # fragments to adit, but one of each datagram
        self.originated = 0  # fragments by adit, likewise

    def run(self):
        """Sets both ends up, sends, and compares."""
        self.net.forget_path_mtus(self._ends[0])
        self.peer.configure(self.case)
        self.gateway.configure(self.case)
        self.listener.frames()
        before = self._counters()
        try:
            self._pings()
            if not self.faults:
                self._transfers()
        except OSError as error:
            self.faults.append(f"TCP: {error}")
        if self.case.extra == "tfc":
            # Once a second workers look whether somebody wants dummies.
            time.sleep(1.5)
        self.gateway.hush(self.case)
        # The last acknowledgements of TCP are still under way: all witnesses must come to agree.
        deadline = time.monotonic() + 3
        while True:
            self._hear()
            disagreements = self._disagreements(before, self._counters())
            if not disagreements or time.monotonic() > deadline:
                break
        self.faults += disagreements
        for direction, packets in self.packets.items():
            # One worker numbers, one wire keeps the order: 1, 2, 3 …
            numbers = [packet.sequence for packet in packets]
            if numbers != list(range(1, len(numbers) + 1)):
                self.faults.append(f"sequence numbers {direction} are not consecutive: {numbers}")
        return self

    def _counters(self):
        # The kernel's own multicast in the host path's device comes when it likes.
        drops = {reason: count for reason, count in self.gateway.drops().items() if reason != "host_unprotected"}
        return self.gateway.totals(), drops, self.peer.errors()

    @property
    def _ends(self):
        """Where the traffic starts, that end's address, and the other's."""
        if self.case.mode == "transport":
            return "ga", network.GATEWAY_A[self.case.inner], network.GATEWAY_B[self.case.inner]
        return "ha", network.HOST_A[self.case.inner], network.HOST_B[self.case.inner]

    def _pings(self):
        namespace, near, far = self._ends
        for size in SIZES:
            answered, too_big = self.net.ping(namespace, size, far)
            if too_big:
                # The path's MTU is known from now on: the host makes fragments.
                self.refused += 1
                answered, _ = self.net.ping(namespace, size, far)
            if not answered:
                self.faults.append(f"ping of {size} bytes to the peer is not answered")
            if not self.peer.ping(size, near):
                self.faults.append(f"ping of {size} bytes from the peer is not answered")

    def _transfers(self):
        namespace, near, far = self._ends
        if fault := self.net.send(namespace, far):
            self.faults.append(fault)
        with self.net.listen(namespace, near) as server, ThreadPoolExecutor(1) as host:
            received = host.submit(network.received, server)
            self.peer.send(near)
            if received.result() != self.peer.payload_hash:
                self.faults.append("TCP from the peer: something else arrived")

    def _hear(self):
        case = self.case
        directions = {case.spi(direction): direction for direction in self.packets}
        for frame, fragments in self.listener.frames():
            packet = judge(frame)
            if isinstance(packet, str):
                self.faults.append(f"on the wire: {packet}")
            elif packet and (packet.protocol, packet.outer) != (case.protocol, case.outer):
                self.faults.append(f"on the wire: {packet.protocol} over IPv{packet.outer}")
            elif packet and packet.spi not in directions:
                self.faults.append(f"on the wire: SPI {packet.spi:#x}")
            elif fragments > 1 and directions[packet.spi] == "ab" and case.mode != "transport":
                self.faults.append("on the wire: fragments of adit's")
            elif packet:
                self.packets[directions[packet.spi]].append(packet)
                # What adit fragments came from its own kernel in two.
                self.absorbed += fragments - 1
                self.originated += fragments - 1 if directions[packet.spi] == "ab" else 0

    def _disagreements(self, before, after):
        """What the witnesses do not agree in, all counted since `before`."""
        faults = []
        engine, drops, errors = (
            {name: count - old.get(name, 0) for name, count in new.items()} for old, new in zip(before, after)
        )
        wire = {direction: len(packets) for direction, packets in self.packets.items()}
        drops = {reason: count for reason, count in drops.items() if count}
        errors = {name: count for name, count in errors.items() if count}

        def equal(what, found, expected):
            if found != expected:
                faults.append(f"{what}: {found}, expected {expected}")

        ended = sum(engine[end] for end in ("transmitted", "delivered", "absorbed", "dropped", "in_flight"))
        equal("conservation: received + originated against all ends", engine["received"] + engine["originated"], ended)
        equal("adit drops", drops, {"too_big": self.refused} if self.refused else {})
        dummies = self._dummies()
        originated = self.refused + dummies + self.originated
        equal("packets that adit originated", engine["originated"], originated)
        equal("fragments that adit put together, against the wire", engine["absorbed"], self.absorbed)
        layers = len(self.case.layers)
        equal("packets that adit sealed, against the wire", engine["sealed"], layers * wire["ab"])
        equal("packets that adit opened, against the wire", engine["opened"], layers * wire["ba"])
        for direction, count in wire.items():
            count -= dummies if direction == "ab" else 0
            for layer in self.case.layers:
                equal(f"packets {direction} that the peer counts, against the wire", self.peer.packets(layer, direction), count)
        equal("errors that the peer counts", errors, self.peer.errors_of_dummies(dummies))
        return faults

    def _dummies(self):
        """How many of adit's packets are dummies, as OpenSSL reads them; all of them look alike from outside."""
        if self.case.extra != "tfc":
            return 0
        packets = self.packets["ab"]
        if len({len(packet.bytes) for packet in packets}) != 1:
            self.faults.append("on the wire: padded packets of several sizes")
        dummies = sum(inside(self.case, "ab", packet)[-1] == NO_NEXT_HEADER for packet in packets)
        if not dummies:
            self.faults.append("on the wire: no dummy packets")
        return dummies
