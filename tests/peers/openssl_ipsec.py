"""ESP by OpenSSL's AES-GCM and AH by its HMAC-SHA-256, layer by layer: JSON lines in, JSON lines out.

    {"seal": payload, "spi", "sequence", "next_header", "key"}             -> ESP
    {"open": ESP, "key"}                                                   -> {"payload", "next_header"}
    {"sign": payload, "spi", "sequence", "next_header", "key", "header"}   -> IP packet with AH
    {"check": IP packet with AH, "key"}                                    -> {"payload", "next_header"}

Bytes are hexadecimal, a key of ESP has its salt at its end (RFC 4106), numbers are 32-bit ones. `header` is an IP header
without options or extension headers, whose lengths and checksum are filled in.
"""

import hmac
import json
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

AH, ICV = 51, 16


def seal(request):
    payload, key = bytes.fromhex(request["seal"]), bytes.fromhex(request["key"])
    header = struct.pack("!II", request["spi"], request["sequence"])
    iv = struct.pack("!Q", request["sequence"])
    padding = bytes(range(1, (-len(payload) - 2) % 4 + 1))
    plaintext = payload + padding + bytes([len(padding), request["next_header"]])
    return (header + iv + AESGCM(key[:-4]).encrypt(key[-4:] + iv, plaintext, header)).hex()


def open_(request):
    esp, key = bytes.fromhex(request["open"]), bytes.fromhex(request["key"])
    plaintext = AESGCM(key[:-4]).decrypt(key[-4:] + esp[8:16], esp[16:], esp[:8])
    pad_length, next_header = plaintext[-2:]
    padding = plaintext[-2 - pad_length : -2]
    assert padding == bytes(range(1, pad_length + 1)), padding
    return {"payload": plaintext[: len(plaintext) - 2 - pad_length].hex(), "next_header": next_header}


def icv(header, ah, payload, key):
    """RFC 4302 section 3.3.3: what changes on the way is zero, and so is the ICV itself."""
    header = bytearray(header)
    if header[0] >> 4 == 4:
        for start, end in ((1, 2), (6, 9), (10, 12)):
            header[start:end] = bytes(end - start)
    else:
        header[:4], header[7] = b"\x60\0\0\0", 0
    return hmac.digest(key, bytes(header) + ah[:12] + bytes(len(ah) - 12) + payload, "sha256")[:ICV]


def checksum(header):
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ah_length(version):
    """RFC 4302 section 2.6: a multiple of 4 bytes over IPv4, of 8 over IPv6."""
    return 12 + ICV if version == 4 else (12 + ICV + 7) // 8 * 8


def sign(request):
    header, payload = bytearray.fromhex(request["header"]), bytes.fromhex(request["sign"])
    version = header[0] >> 4
    length = ah_length(version)
    ah = struct.pack("!BBHII", request["next_header"], length // 4 - 2, 0, request["spi"], request["sequence"])
    ah += bytes(length - 12)
    if version == 4:
        header[2:4], header[9] = struct.pack("!H", len(header) + length + len(payload)), AH
        header[10:12] = bytes(2)
        header[10:12] = struct.pack("!H", checksum(bytes(header)))
    else:
        header[4:6], header[6] = struct.pack("!H", length + len(payload)), AH
    code = icv(header, ah, payload, bytes.fromhex(request["key"]))
    return (bytes(header) + ah[:12] + code + ah[12 + ICV :] + payload).hex()


def check(request):
    packet, key = bytes.fromhex(request["check"]), bytes.fromhex(request["key"])
    version = packet[0] >> 4
    start, length = (20 if version == 4 else 40), ah_length(version)
    header, ah, payload = packet[:start], packet[start : start + length], packet[start + length :]
    assert packet[9 if version == 4 else 6] == AH and ah[1] == length // 4 - 2, packet[:start].hex()
    assert hmac.compare_digest(icv(header, ah, payload, key), ah[12 : 12 + ICV]), "ICV"
    return {"payload": payload.hex(), "next_header": ah[0]}


VERBS = {"seal": seal, "open": open_, "sign": sign, "check": check}
for line in sys.stdin:
    request = json.loads(line)
    verb = next(verb for verb in VERBS if verb in request)
    print(json.dumps(VERBS[verb](request)))
