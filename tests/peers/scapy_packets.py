"""scapy makes packets: a line of JSON in, a JSON list of packets in hex out.

    {"do": "fragments", "packet", "mtu"}                              the fragments of a whole packet
    {"do": "error", "packet", "from", "kind", "mtu", "quoted"}        an ICMP error about a packet, to its source
    {"do": "whole", "packets"}                                        whole packets of fragments
"""

import json
import sys

from scapy.layers.inet import ICMP, IP, defragment, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
    defragment6,
    fragment6,
)
from scapy.packet import Raw


def fragments(number, packet, mtu):
    packet = bytes.fromhex(packet)
    if len(packet) <= mtu:
        return [packet]
    if packet[0] >> 4 == 4:
        header_length = (packet[0] & 15) * 4
        return fragment(IP(packet), fragsize=mtu - header_length)
    whole = IPv6(packet)
    # The header says where it is to be cut; what follows it is bytes to scapy.
    header = IPv6ExtHdrFragment(nh=whole.nh, id=0x0BADCAFE + number)
    outer = IPv6(src=whole.src, dst=whole.dst, tc=whole.tc, hlim=whole.hlim, nh=44)
    return fragment6(outer / header / Raw(packet[40:]), mtu)


def error(number, packet, kind, mtu, quoted, **origin):
    packet = bytes.fromhex(packet)
    if packet[0] >> 4 == 4:
        message = {
            "too-big": ICMP(type=3, code=4, nexthopmtu=mtu),
            "unreachable": ICMP(type=3, code=1),
            "time-exceeded": ICMP(type=11),
            "parameter-problem": ICMP(type=12),
        }[kind]
        about = packet[: (packet[0] & 15) * 4 + quoted][:548]
        return [IP(src=origin["from"], dst=IP(packet).src) / message / Raw(about)]
    message = {
        "too-big": ICMPv6PacketTooBig(mtu=mtu),
        "unreachable": ICMPv6DestUnreach(),
        "time-exceeded": ICMPv6TimeExceeded(),
        "parameter-problem": ICMPv6ParamProblem(),
    }[kind]
    about = packet[: 40 + quoted][:1232]
    return [IPv6(src=origin["from"], dst=IPv6(packet).src) / message / Raw(about)]


def whole(number, packets):
    packets = [bytes.fromhex(packet) for packet in packets]
    if packets[0][0] >> 4 == 4:
        out = list(defragment([IP(packet) for packet in packets]))
    else:
        parts, out = {}, []
        for packet in packets:
            parsed = IPv6(packet)
            if IPv6ExtHdrFragment in parsed:
                parts.setdefault(parsed[IPv6ExtHdrFragment].id, []).append(parsed)
            else:
                out.append(parsed)
        out += [defragment6(pieces) for pieces in parts.values()]
    return out


DO = {"fragments": fragments, "error": error, "whole": whole}
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    made = DO[request.pop("do")](number, **request)
    print(json.dumps([bytes(packet).hex() for packet in made]), flush=True)
