"""A gateway made of scapy: an independent implementation of ESP and AH at the other end of the wire.

It opens every packet the engine sealed, answers the echo request inside it, and seals the answer for the
engine to open. Its SAs come as JSON on standard input; what it saw leaves as one JSON line per packet.

    [{"protocol", "udp", "spi_in", "spi_out", "crypt", "crypt_key_in", "crypt_key_out", "icv", "auth", "auth_key_in", "auth_key_out",
      "esn", "local", "remote"}, ...]
"""

import json
import os
import select
import socket
import struct
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.ipsec import (
    AH,
    AUTH_ALGOS,
    ESP,
    AuthAlgo,
    IPSecIntegrityError,
    SecurityAssociation,
    zero_mutable_fields,
)

ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
IPPROTO_UDP, IPPROTO_ESP, IPPROTO_AH = 17, 50, 51
NAT_TRAVERSAL_PORT = 4500


class Gmac(AuthAlgo):
    """AES-GMAC in AH (RFC 4543 section 4), which scapy does not have: what is covered is as scapy finds it, the tag
    is OpenSSL's. The ICV field holds an IV, here random, and the tag."""

    IV = 8

    def __init__(self, name):
        super().__init__(name, mac=AESGCM, digestmod=None, icv_size=self.IV + 16, key_size=(20, 28, 36))

    def parts(self, pkt, key, iv, sending, high_word):
        covered = bytes(zero_mutable_fields(pkt.copy(), sending=sending)) + high_word
        return AESGCM(key[:-4]), key[-4:] + iv, covered

    def sign(self, pkt, key, esn_en=False, esn=0):
        iv = os.urandom(self.IV)
        gcm, nonce, covered = self.parts(pkt, key, iv, True, struct.pack("!L", esn) if esn_en else b"")
        pkt[AH].icv = iv + gcm.encrypt(nonce, b"", covered)
        return pkt

    def verify(self, pkt, key, esn_en=False, esn=0):
        ah = pkt[AH]
        ah.icv, ah.padding = ah.icv[: self.icv_size], ah.icv[self.icv_size :]
        iv, tag = ah.icv[: self.IV], ah.icv[self.IV :]
        gcm, nonce, covered = self.parts(pkt, key, iv, False, struct.pack("!L", esn) if esn_en else b"")
        try:
            gcm.decrypt(nonce, tag, covered)
        except InvalidTag as error:
            raise IPSecIntegrityError("the tag is wrong") from error


AUTH_ALGOS["AES-GMAC"] = Gmac("AES-GMAC")


def association(entry, direction, source, destination):
    header = IPv6 if ":" in source else IP
    if entry["protocol"] == "ah":
        return SecurityAssociation(
            AH,
            spi=entry[f"spi_{direction}"],
            auth_algo=entry["auth"],
            auth_key=bytes.fromhex(entry[f"auth_key_{direction}"] or entry[f"crypt_key_{direction}"]),
            tunnel_header=header(src=source, dst=destination),
            esn_en=entry["esn"],
            esn=0,
        )
    return SecurityAssociation(
        ESP,
        spi=entry[f"spi_{direction}"],
        crypt_algo=entry["crypt"],
        crypt_key=bytes.fromhex(entry[f"crypt_key_{direction}"]) or None,
        crypt_icv_size=entry["icv"],
        auth_algo=entry["auth"],
        auth_key=bytes.fromhex(entry[f"auth_key_{direction}"]) or None,
        tunnel_header=header(src=source, dst=destination),
        nat_t_header=UDP(sport=NAT_TRAVERSAL_PORT, dport=NAT_TRAVERSAL_PORT) if entry["udp"] else None,
        esn_en=entry["esn"],
        esn=0,
    )


def opened(association, packet):
    """What is inside; scapy leaves IPv4 in AH as bytes."""
    inner = association.decrypt(packet)
    if isinstance(inner, (IP, IPv6)):
        return inner
    content = bytes(inner)
    return IP(content) if content[0] >> 4 == 4 else IPv6(content)


def answer(inner):
    """The echo reply to an echo request, or None."""
    if ICMP in inner and inner[ICMP].type == 8:
        echo = inner[ICMP]
        return IP(src=inner.dst, dst=inner.src, ttl=64) / ICMP(type=0, id=echo.id, seq=echo.seq) / echo.payload
    if ICMPv6EchoRequest in inner:
        echo = inner[ICMPv6EchoRequest]
        reply = ICMPv6EchoReply(id=echo.id, seq=echo.seq, data=echo.data)
        return IPv6(src=inner.dst, dst=inner.src, hlim=64) / reply
    return None


def main():
    entries = json.loads(sys.stdin.readline())
    inbound = {e["spi_in"]: association(e, "in", e["remote"], e["local"]) for e in entries}
    outbound = {e["spi_in"]: association(e, "out", e["local"], e["remote"]) for e in entries}
    remote = {e["spi_in"]: e["remote"] for e in entries}

    # The packet socket hears whole datagrams. The raw sockets send, and keep the kernel from answering
    # "protocol unreachable" (which it does for what does not fit their buffers, so they are emptied).
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
    heard.bind(("out0", 0x0003))
    raws = {}
    # The same for UDP: a socket that has the port.
    bound = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    bound.bind(("::", NAT_TRAVERSAL_PORT))
    bound.setblocking(False)
    for protocol in (IPPROTO_UDP, IPPROTO_ESP, IPPROTO_AH):
        raw4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        raw6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
        raw4.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        raw4.setblocking(False)
        raw6.setblocking(False)
        raws[protocol] = (raw4, raw6)
    print(json.dumps({"event": "ready"}), flush=True)

    while True:
        readable, _, _ = select.select([heard, bound, *(raw for pair in raws.values() for raw in pair)], [], [])
        for raw in readable:
            if raw is not heard:
                raw.recv(65535)
        if heard not in readable:
            continue
        datagram, (_, ethertype, kind, *_) = heard.recvfrom(65535)
        if kind == socket.PACKET_OUTGOING or ethertype not in (ETH_P_IP, ETH_P_IPV6):
            continue
        packet = IP(datagram) if ethertype == ETH_P_IP else IPv6(datagram)
        if AH in packet:
            protocol, layer = IPPROTO_AH, packet[AH]
        elif ESP in packet:
            protocol, layer = IPPROTO_UDP if UDP in packet else IPPROTO_ESP, packet[ESP]
        else:
            continue
        raw4, raw6 = raws[protocol]
        spi = layer.spi
        event = {"event": "packet", "spi": spi, "sequence": layer.seq, "length": len(datagram)}
        try:
            inner = opened(inbound[spi], packet)
            event["inner"] = inner.summary()
            reply = answer(inner)
            if reply is not None:
                sealed = outbound[spi].encrypt(reply)
                if isinstance(sealed, IP):
                    raw4.sendto(bytes(sealed), (remote[spi], 0))
                else:
                    raw6.sendto(bytes(sealed.payload), (remote[spi], 0, 0, 0))
                event["answered"] = True
        except Exception as error:  # a wrong ICV, an unknown SPI: told, and the test fails on it
            event["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(event), flush=True)


main()
