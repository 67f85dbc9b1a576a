"""One case tried: traffic both ways, then every count of every witness compared."""

from concurrent.futures import ThreadPoolExecutor

from interop import network
from interop.wire import Packet, judge

SIZES = (100, 1390)


class Trial:
    """What the witnesses saw of one case; `faults` says in words what was wrong."""

    def __init__(self, case, net, gateway, peer, listener):
        self.case, self.net, self.gateway, self.peer, self.listener = case, net, gateway, peer, listener
        self.faults = []
        self.refused = 0  # echo requests answered with "too big"
        self.packets = {"ab": [], "ba": []}

    def run(self):
        """Sets both ends up, sends, and compares."""
        self.net.forget_path_mtus("ha")
        self.peer.configure(self.case)
        self.gateway.configure(self.case)
        before = self._counters()
        self.listener.frames()
        try:
            self._pings()
            self._transfers()
        except OSError as error:
            self.faults.append(f"TCP: {error}")
        after = self._counters()
        self._judge_wire()
        self._compare(before, after)
        return self

    def _counters(self):
        return self.gateway.totals(), self.gateway.drops(), self.peer.errors()

    @property
    def _ends(self):
        """Where host A's traffic starts, its address, and host B's."""
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

    def _judge_wire(self):
        case = self.case
        directions = {case.spi(direction): direction for direction in self.packets}
        for frame in self.listener.frames():
            packet = judge(frame)
            if isinstance(packet, str):
                self.faults.append(f"on the wire: {packet}")
            elif packet and (packet.protocol, packet.outer) != (case.protocol, case.outer):
                self.faults.append(f"on the wire: {packet.protocol} over IPv{packet.outer}")
            elif packet and packet.spi not in directions:
                self.faults.append(f"on the wire: SPI {packet.spi:#x}")
            elif packet:
                self.packets[directions[packet.spi]].append(packet)
        for direction, packets in self.packets.items():
            # One worker numbers, one wire keeps the order: 1, 2, 3 …
            if [packet.sequence for packet in packets] != list(range(1, len(packets) + 1)):
                self.faults.append(f"sequence numbers {direction} are not consecutive")

    def _compare(self, before, after):
        engine, drops, errors = (
            {name: count - old.get(name, 0) for name, count in new.items()} for old, new in zip(before, after)
        )
        wire = {direction: len(packets) for direction, packets in self.packets.items()}
        drops = {reason: count for reason, count in drops.items() if count}
        errors = {name: count for name, count in errors.items() if count}

        def equal(what, found, expected):
            if found != expected:
                self.faults.append(f"{what}: {found}, expected {expected}")

        ended = engine["transmitted"] + engine["delivered"] + engine["dropped"] + engine["in_flight"]
        equal("conservation: received + originated against all ends", engine["received"] + engine["originated"], ended)
        equal("adit drops", drops, {"too_big": self.refused} if self.refused else {})
        equal("packets that adit originated", engine["originated"], self.refused)
        equal("packets that adit sealed, against the wire", engine["sealed"], wire["ab"])
        equal("packets that adit opened, against the wire", engine["opened"], wire["ba"])
        for direction, count in wire.items():
            equal(f"packets {direction} that the peer counts, against the wire", self.peer.packets(self.case, direction), count)
        equal("errors that the peer counts", errors, {})
