"""scapy's fragments of whole IP packets: a line {"packet": hex, "mtu": bytes} in, a JSON list of hex fragments out."""

import json
import sys

from scapy.layers.inet import IP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Raw


def fragments(packet, mtu, number):
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


for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    made = fragments(bytes.fromhex(request["packet"]), request["mtu"], number)
    print(json.dumps([bytes(piece).hex() for piece in made]), flush=True)
