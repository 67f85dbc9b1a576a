"""Writes openssl_esp_seal.json: ESP packets as OpenSSL's primitives and the RFCs' layouts make them.

Independent of the engine: laid out here from RFC 4303, 4106, 4309, 3602, 2451, 2405, 2403, 2404 and 4868,
encrypted and authenticated by OpenSSL through pyca/cryptography. CBC IVs are AES-256 under the burst's
`iv_seed` over the blocks 1, 2, 3, ..., which is how the engine's deterministic source makes them.
"""

import hashlib
import hmac
import json
import struct

from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

CIPHERS = {  # name: key bytes, salt bytes, IV bytes, alignment
    "null": (0, 0, 0, 4),
    "des": (8, 0, 8, 8),
    "3des": (24, 0, 8, 8),
    "aes-128-cbc": (16, 0, 16, 16),
    "aes-192-cbc": (24, 0, 16, 16),
    "aes-256-cbc": (32, 0, 16, 16),
    "aes-128-ccm": (16, 3, 8, 4),
    "aes-128-gcm": (16, 4, 8, 4),
    "aes-192-gcm": (24, 4, 8, 4),
    "aes-256-gcm": (32, 4, 8, 4),
}
HASHES = {"md5": (16, 12), "sha1": (20, 12), "sha256": (32, 16), "sha384": (48, 24), "sha512": (64, 32)}


def stretch(label, length):
    return hashlib.shake_256(label.encode()).digest(length)


def iv_stream(seed, length):
    encryptor = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    blocks = -(-length // 16)
    return encryptor.update(b"".join(n.to_bytes(16, "big") for n in range(1, blocks + 1)))[:length]


def cbc(cipher, key, iv, text):
    if cipher == "null":
        return text
    # DES is 3DES with three equal keys.
    algorithm = {"des": lambda: TripleDES(key * 3), "3des": lambda: TripleDES(key)}.get(
        cipher, lambda: algorithms.AES(key)
    )()
    return Cipher(algorithm, modes.CBC(iv)).encryptor().update(text)


def aead(cipher, key, nonce, aad, text, icv_length):
    if cipher == "aes-128-ccm":
        return AESCCM(key, tag_length=icv_length).encrypt(nonce, text, aad)
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(aad)
    return encryptor.update(text) + encryptor.finalize() + encryptor.tag[:icv_length]


def burst(cipher, auth, icv_length, esn, lengths):
    key_length, salt_length, iv_length, alignment = CIPHERS[cipher]
    name = f"{cipher}|{auth}|{icv_length}|{esn}"
    key, salt = stretch("key|" + name, key_length), stretch("salt|" + name, salt_length)
    auth_key = stretch("auth|" + name, HASHES[auth][0]) if auth != "none" else b""
    spi, first = 0x00C0FFEE, (0x1_0000_0002 - len(lengths) // 2 if esn else 9)
    seed = stretch("seed|" + name, 32)
    ivs = iv_stream(seed, iv_length * len(lengths))
    packets = []
    for at, length in enumerate(lengths):
        sequence = first + at
        header = struct.pack(">II", spi, sequence & 0xFFFFFFFF)
        payload = stretch(f"payload|{name}|{at}", length)
        next_header = 4 if at % 2 else 41
        pad = -(length + 2) % alignment
        text = payload + bytes(range(1, pad + 1)) + bytes([pad, next_header])
        if auth == "none":
            iv = struct.pack(">Q", sequence)
            aad = struct.pack(">IQ", spi, sequence) if esn else header
            esp = header + iv + aead(cipher, key, salt + iv, aad, text, icv_length)
        else:
            iv = ivs[at * iv_length :][:iv_length]
            signed = header + iv + cbc(cipher, key, iv, text)
            high = struct.pack(">I", sequence >> 32) if esn else b""
            esp = signed + hmac.new(auth_key, signed + high, auth).digest()[:icv_length]
        packets.append({"payload": payload.hex(), "next_header": next_header, "esp": esp.hex()})
    return {
        "encryption": cipher,
        "authentication": auth,
        "icv_length": icv_length,
        "esn": esn,
        "encryption_key": (key + salt).hex(),
        "authentication_key": auth_key.hex(),
        "spi": spi,
        "sequence": first,
        "iv_seed": seed.hex(),
        "packets": packets,
    }


bursts = []
for cipher, (_, salt_length, _, _) in CIPHERS.items():
    pairs = [("none", n) for n in (8, 12, 16)] if salt_length else [(a, n) for a, (_, n) in HASHES.items()]
    for auth, icv_length in pairs:
        for esn in (False, True):
            bursts.append(burst(cipher, auth, icv_length, esn, [0, 1, 29, 100]))
# More packets than run side by side, all of different lengths.
for cipher, auth in (("aes-128-cbc", "sha256"), ("3des", "sha1"), ("aes-256-cbc", "sha512")):
    bursts.append(burst(cipher, auth, HASHES[auth][1], True, [(n * 53) % 211 for n in range(37)]))
bursts.append(burst("aes-128-gcm", "none", 16, True, [1400, 64, 1281]))

with open("openssl_esp_seal.json", "w") as out:
    json.dump({"source": f"openssl_esp_seal.py with {backend.openssl_version_text()}", "bursts": bursts}, out, indent=0)
    out.write("\n")
print(len(bursts), sum(len(b["packets"]) for b in bursts))
