"""Writes openssl_esp_seal.json: ESP packets as OpenSSL's primitives and the RFCs' layouts make them.

Independent of the engine: laid out here from RFC 4303 and those of the algorithms (2403, 2404, 2405, 2451, 3566, 3602,
3686, 4106, 4309, 4494, 4543, 4868, 7634), encrypted and authenticated by OpenSSL through pyca/cryptography; XCBC, which
OpenSSL has not, is RFC 3566 section 4 over its AES. CBC IVs are AES-256 under the burst's
`iv_seed` over the blocks 1, 2, 3, ..., which is how the engine's deterministic source makes them.
"""

import hashlib
import hmac
import json
import struct

from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.cmac import CMAC

CIPHERS = {  # name: key bytes, salt bytes, IV bytes, alignment
    "null": (0, 0, 0, 4),
    "des": (8, 0, 8, 8),
    "3des": (24, 0, 8, 8),
    "aes-128-cbc": (16, 0, 16, 16),
    "aes-192-cbc": (24, 0, 16, 16),
    "aes-256-cbc": (32, 0, 16, 16),
    "aes-128-ctr": (16, 4, 8, 4),
    "aes-192-ctr": (24, 4, 8, 4),
    "aes-256-ctr": (32, 4, 8, 4),
    "aes-128-ccm": (16, 3, 8, 4),
    "aes-192-ccm": (24, 3, 8, 4),
    "aes-256-ccm": (32, 3, 8, 4),
    "aes-128-gcm": (16, 4, 8, 4),
    "aes-192-gcm": (24, 4, 8, 4),
    "aes-256-gcm": (32, 4, 8, 4),
    "chacha20-poly1305": (32, 4, 8, 4),
    "aes-128-gmac": (16, 4, 8, 4),
    "aes-192-gmac": (24, 4, 8, 4),
    "aes-256-gmac": (32, 4, 8, 4),
}
MACS = {  # name: key bytes, ICV bytes
    "md5": (16, 12),
    "sha1": (20, 12),
    "sha256": (32, 16),
    "sha384": (48, 24),
    "sha512": (64, 32),
    "aes-xcbc": (16, 12),
    "aes-cmac": (16, 12),
}


def stretch(label, length):
    return hashlib.shake_256(label.encode()).digest(length)


def iv_stream(seed, length):
    encryptor = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    blocks = -(-length // 16)
    return encryptor.update(b"".join(n.to_bytes(16, "big") for n in range(1, blocks + 1)))[:length]


def encrypt(cipher, key, salt, iv, text):
    if cipher == "null":
        return text
    if cipher.endswith("-ctr"):
        block = salt + iv + struct.pack(">I", 1)
        return Cipher(algorithms.AES(key), modes.CTR(block)).encryptor().update(text)
    # DES is 3DES with three equal keys.
    algorithm = {"des": lambda: TripleDES(key * 3), "3des": lambda: TripleDES(key)}.get(
        cipher, lambda: algorithms.AES(key)
    )()
    return Cipher(algorithm, modes.CBC(iv)).encryptor().update(text)


def xcbc(key, message):
    ecb = lambda key, block: Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)
    xor = lambda one, other: bytes(a ^ b for a, b in zip(one, other))
    k1, k2, k3 = (ecb(key, bytes([n] * 16)) for n in (1, 2, 3))
    last = (len(message) - 1) // 16 * 16
    state = bytes(16)
    for at in range(0, last, 16):
        state = ecb(k1, xor(state, message[at : at + 16]))
    block = message[last:]
    masked = xor(block, k2) if len(block) == 16 else xor(block + b"\x80" + bytes(15 - len(block)), k3)
    return ecb(k1, xor(state, masked))


def mac(name, key, message):
    if name == "aes-xcbc":
        return xcbc(key, message)
    if name == "aes-cmac":
        cmac = CMAC(algorithms.AES(key))
        cmac.update(message)
        return cmac.finalize()
    return hmac.new(key, message, name).digest()


def aead(cipher, key, nonce, aad, text, icv_length):
    if cipher.endswith("-ccm"):
        return AESCCM(key, tag_length=icv_length).encrypt(nonce, text, aad)
    if cipher.endswith("-gmac"):  # RFC 4543 section 3.3: the IV is authenticated too, behind the AAD
        return text + AESGCM(key).encrypt(nonce, b"", aad + nonce[4:] + text)
    if cipher == "chacha20-poly1305":
        return ChaCha20Poly1305(key).encrypt(nonce, text, aad)
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(aad)
    return encryptor.update(text) + encryptor.finalize() + encryptor.tag[:icv_length]


def burst(cipher, auth, icv_length, esn, lengths):
    key_length, salt_length, iv_length, alignment = CIPHERS[cipher]
    name = f"{cipher}|{auth}|{icv_length}|{esn}"
    key, salt = stretch("key|" + name, key_length), stretch("salt|" + name, salt_length)
    auth_key = stretch("auth|" + name, MACS[auth][0]) if auth != "none" else b""
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
        iv = struct.pack(">Q", sequence) if salt else ivs[at * iv_length :][:iv_length]
        if auth == "none":
            aad = struct.pack(">IQ", spi, sequence) if esn else header
            esp = header + iv + aead(cipher, key, salt + iv, aad, text, icv_length)
        else:
            signed = header + iv + encrypt(cipher, key, salt, iv, text)
            high = struct.pack(">I", sequence >> 32) if esn else b""
            esp = signed + mac(auth, auth_key, signed + high)[:icv_length]
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
for cipher in CIPHERS:
    if cipher.endswith(("-gcm", "-ccm")):
        pairs = [("none", n) for n in (8, 12, 16)]
    elif cipher.endswith(("-gmac", "-poly1305")):
        pairs = [("none", 16)]
    else:
        pairs = [(a, n) for a, (_, n) in MACS.items()]
    for auth, icv_length in pairs:
        for esn in (False, True):
            bursts.append(burst(cipher, auth, icv_length, esn, [0, 1, 29, 100]))
# More packets than run side by side, all of different lengths.
many = ("aes-128-cbc sha256", "3des sha1", "aes-256-cbc sha512", "aes-192-ctr aes-xcbc", "null aes-cmac")
for cipher, auth in map(str.split, many):
    bursts.append(burst(cipher, auth, MACS[auth][1], True, [(n * 53) % 211 for n in range(37)]))
bursts.append(burst("aes-256-gmac", "none", 16, True, [(n * 53) % 211 for n in range(37)]))
for cipher in ("aes-128-gcm", "aes-192-gmac", "chacha20-poly1305", "aes-256-ccm"):
    bursts.append(burst(cipher, "none", 16, True, [1400, 64, 1281]))
bursts.append(burst("aes-128-ctr", "aes-cmac", 12, True, [1400, 64, 1281]))

with open("openssl_esp_seal.json", "w") as out:
    json.dump({"source": f"openssl_esp_seal.py with {backend.openssl_version_text()}", "bursts": bursts}, out, indent=0)
    out.write("\n")
print(len(bursts), sum(len(b["packets"]) for b in bursts))
