"""ESP by OpenSSL's AES-GCM, layer by layer: JSON lines in, JSON lines out.

    {"seal": payload, "spi", "sequence", "next_header", "key"}  -> ESP
    {"open": ESP, "key"}                                        -> {"payload", "next_header"}

Bytes are hexadecimal, a key has its salt at its end (RFC 4106), numbers are 32-bit ones.
"""

import json
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


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


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps(seal(request) if "seal" in request else open_(request)))
