"""Listens on the wire between the gateways and says what every frame is, fragments put together. It knows nothing of
either engine."""

import socket
import struct
import time
from dataclasses import dataclass

ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6

# The link's own talk: neighbour and router discovery, MLD.
ICMPV6_LINK = {*range(130, 138), 143}


@dataclass(frozen=True)
class Packet:
    """An IPsec packet on the wire."""

    protocol: str
    spi: int
    sequence: int
    outer: int
    header: bytes  # IP, without what Ethernet has in front
    bytes: bytes  # from the ESP or AH header to the end of the datagram


class Listener:
    """Hears the wire at gateway A's end; keeps every frame in a capture."""

    def __init__(self, network):
        self.socket = network.socket("wire", socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        self.socket.bind(("left", ETH_P_ALL))
        self.socket.setblocking(False)
        self.datagrams = {}
        self.path = network.directory / "wire.pcap"
        self.capture = self.path.open("wb")
        self.capture.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))

    def frames(self):
        """Every frame since the last call, and in how many fragments it came: what came in several, with the last of
        them. A socket that lost one ends the run: it could have been a leak."""
        out = []
        while True:
            try:
                frame = self.socket.recv(65535)
            except BlockingIOError:
                break
            now = time.time()
            header = struct.pack("<IIII", int(now), int(now % 1 * 1e6), len(frame), len(frame))
            self.capture.write(header + frame)
            if whole := self._whole(frame):
                out.append(whole)
        self.capture.flush()
        _, lost = struct.unpack("II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if lost:
            raise RuntimeError(f"the listener lost {lost} frames")
        return out


    def _whole(self, frame):
        """The frame, with the number of its fragments; None while some are missing."""
        packet = frame[14:]
        if frame[12:14] == b"\x08\x00" and len(packet) >= 20:
            field = struct.unpack_from(">H", packet, 6)[0]
            offset, more = (field & 0x1FFF) * 8, field & 0x2000
            start, end = 4 * (packet[0] & 15), struct.unpack_from(">H", packet, 2)[0]
            key = packet[4:6] + packet[9:10] + packet[12:20]
        elif frame[12:14] == b"\x86\xdd" and len(packet) >= 48 and packet[6] == 44:
            field = struct.unpack_from(">H", packet, 42)[0]
            offset, more = field & 0xFFF8, field & 1
            start, end = 48, 40 + struct.unpack_from(">H", packet, 4)[0]
            key = packet[44:48] + packet[8:40]
        else:
            return frame, 1
        if not offset and not more:
            return frame, 1
        pieces = self.datagrams.setdefault(key, [])
        pieces.append((offset, bool(more), frame[: 14 + start], packet[start:end]))
        pieces.sort()
        payload = b""
        for at, _, _, piece in pieces:
            if at != len(payload):
                return None
            payload += piece
        if pieces[-1][1]:
            return None
        del self.datagrams[key]
        head = bytearray(pieces[0][2])
        if len(key) == 36:
            # The header in front of the Fragment header says what that one said.
            head[20] = head[54]
            del head[54:]
            struct.pack_into(">H", head, 18, len(payload))
        else:
            struct.pack_into(">HHH", head, 16, start + len(payload), struct.unpack_from(">H", head, 18)[0], 0)
        return bytes(head) + payload, len(pieces)


def judge(frame):
    """An IPsec packet; None for the link's own talk; a description of anything else."""
    ethertype, packet = frame[12:14], frame[14:]
    if ethertype == b"\x08\x06":
        return None
    if ethertype == b"\x08\x00" and len(packet) >= 20:
        outer, protocol, start, end = 4, packet[9], 4 * (packet[0] & 15), struct.unpack_from(">H", packet, 2)[0]
    elif ethertype == b"\x86\xdd" and len(packet) >= 40:
        outer, protocol, start, end = 6, packet[6], 40, 40 + struct.unpack_from(">H", packet, 4)[0]
        # MLD has a hop-by-hop header in front.
        if protocol == 58 and packet[40] in ICMPV6_LINK or protocol == 0 and packet[40] == 58 and packet[24] == 0xFF:
            return None
    else:
        return f"EtherType {ethertype.hex()}"
    header, payload = packet[:start], packet[start:end]
    if protocol == 50 and len(payload) >= 8:
        return Packet("esp", *struct.unpack_from(">II", payload), outer, header, payload)
    if protocol == 17 and payload[:4] == b"\x11\x94\x11\x94":
        return judge_udp(outer, header, payload)
    if protocol == 51 and len(payload) >= 12:
        return Packet("ah", *struct.unpack_from(">II", payload, 4), outer, header, payload)
    return f"IPv{outer}, protocol {protocol}, {len(payload)} bytes"


def judge_udp(outer, header, datagram):
    """The same of what is between both ports 4500 (RFC 3948): ESP in UDP; None for a keepalive."""
    length, checksum = struct.unpack_from(">HH", datagram, 4)
    content = datagram[8:]
    if length != len(datagram):
        return f"UDP of {length} bytes in {len(datagram)}"
    # Zero means none, which only IPv4 has.
    if checksum or outer == 6:
        addresses = header[12:20] if outer == 4 else header[8:40]
        covered = addresses + struct.pack(">II", length, 17) + datagram + bytes(length % 2)
        if sum(struct.unpack(f">{len(covered) // 2}H", covered)) % 0xFFFF or not checksum:
            return f"UDP with the checksum {checksum:#06x}"
    if content == b"\xff":
        return None
    if len(content) < 8 or content[:4] == bytes(4):
        return f"no ESP in UDP: {content[:8].hex()}"
    return Packet("espinudp", *struct.unpack_from(">II", content), outer, header, content)
