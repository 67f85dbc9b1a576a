#!/usr/bin/env python3
"""A VLAN device for kernels that have none: a TAP device whose frames come and go by another interface, tagged.

    vlan_device.py PARENT NAME VID        one 802.1Q tag
    vlan_device.py PARENT NAME OUTER VID  an 802.1ad tag, and an 802.1Q tag behind it
"""
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
SOL_PACKET, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING = 263, 8, 23
VLAN_VALID, TPID_VALID = 1 << 4, 1 << 6
C_TAG, S_TAG, VID = 0x8100, 0x88A8, 0x0FFF

parent, name = sys.argv[1:3]
kinds = [C_TAG] if len(sys.argv) == 4 else [S_TAG, C_TAG]
tags = list(zip(kinds, map(int, sys.argv[3:])))
header = b"".join(struct.pack("!HH", kind, vid) for kind, vid in tags)

with open(f"/sys/class/net/{parent}/address") as file:
    address = file.read().strip()
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
subprocess.run(["ip", "link", "set", "dev", name, "address", address, "up"], check=True)

wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
wire.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
wire.bind((parent, 0))


def untagged(frame, ancillary):
    """The frame without its tags, if they are ours. The kernel has put the outermost beside it."""
    found = []
    for _, kind, data in ancillary:
        if kind == PACKET_AUXDATA:
            status, _, _, _, _, control, tpid = struct.unpack("IIIHHHH", data[:20])
            if status & VLAN_VALID:
                found.append((tpid if status & TPID_VALID else C_TAG, control & VID))
    at = 12
    while (kind := struct.unpack_from("!H", frame, at)[0]) in (C_TAG, S_TAG):
        found.append((kind, struct.unpack_from("!H", frame, at + 2)[0] & VID))
        at += 4
    return frame[:12] + frame[at:] if found == tags else None


print("ready", flush=True)
while True:
    ready, _, _ = select.select([tap, wire], [], [])
    if tap in ready:
        frame = os.read(tap, 65536)
        wire.send(frame[:12] + header + frame[12:])
    if wire in ready:
        frame, ancillary, _, _ = wire.recvmsg(65536, 256)
        frame = untagged(frame, ancillary) if len(frame) >= 22 else None
        if frame:
            os.write(tap, frame)
