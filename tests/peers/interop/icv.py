"""A third party's word on every ICV of a run: tshark's where it can, OpenSSL's where tshark cannot.

tshark 4.0 decrypts GCM without checking its tags, does not know CCM or the high half of an extended sequence number,
and does not verify AH; these ICVs OpenSSL computes.
"""

import hashlib
import hmac
import subprocess
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.cmac import CMAC

TSHARK_CIPHERS = {
    "null": "NULL",
    "des": "DES-CBC [RFC2405]",
    "3des": "TripleDES-CBC [RFC2451]",
    "aes-128-cbc": "AES-CBC [RFC3602]",
    "aes-192-cbc": "AES-CBC [RFC3602]",
    "aes-256-cbc": "AES-CBC [RFC3602]",
}
TSHARK_HASHES = {
    "md5": "HMAC-MD5-96 [RFC2403]",
    "sha1": "HMAC-SHA-1-96 [RFC2404]",
    "sha256": "HMAC-SHA-256-128 [RFC4868]",
    "sha384": "HMAC-SHA-384-192 [RFC4868]",
    "sha512": "HMAC-SHA-512-256 [RFC4868]",
}


def verify(trials, capture):
    """Adds to the trials' faults what a third party finds wrong, and notes in `judge` who that was."""
    for_tshark = []
    for trial in trials:
        suite = trial.case.suite
        tshark = (not trial.case.esn and suite.hash and suite.hash.name in TSHARK_HASHES
                  and suite.cipher and suite.cipher.name in TSHARK_CIPHERS)  # fmt: skip
        trial.judge = "tshark" if tshark else "OpenSSL"
        if tshark:
            for_tshark.append(trial)
        else:
            wrong = sum(not openssl_agrees(trial.case, direction, packet)
                        for direction, packets in trial.packets.items() for packet in packets)  # fmt: skip
            if wrong:
                trial.faults.append(f"OpenSSL computes {wrong} ICVs differently")
    verdicts = ask_tshark([trial.case for trial in for_tshark], capture) if for_tshark else {}
    for trial in for_tshark:
        for direction, packets in trial.packets.items():
            found = verdicts.get(trial.case.spi(direction), (0, 0, 0))
            expected = (len(packets), 0, len(packets))
            if found != expected:
                trial.faults.append(f"tshark finds {direction} (good, bad, decrypted) {found}, expected {expected}")


def openssl_agrees(case, direction, packet):
    """Whether OpenSSL computes this packet's ICV; no SA here has sent 2^32, so the high half of its number is 0."""
    encryption_key, authentication_key = case.keys(direction)
    suite, high = case.suite, bytes(4) if case.esn else b""
    if packet.protocol == "ah":
        icv = packet.bytes[12 : 12 + suite.icv]
        return hmac.compare_digest(mac(suite, authentication_key, covered_by_ah(packet, suite.icv) + high), icv)
    body, icv = packet.bytes[: -suite.icv], packet.bytes[-suite.icv :]
    if suite.hash:
        # RFC 4303 section 2.2.1: the high half is authenticated behind the packet, and not sent.
        return hmac.compare_digest(mac(suite, authentication_key, body + high), icv)
    return aead_agrees(suite, encryption_key, body, icv, high)


def mac(suite, key, text):
    """A message authentication code, cut to its length in IPsec."""
    if suite.hash.name == "aes-cmac":
        code = CMAC(algorithms.AES(key))
        code.update(text)
        return code.finalize()[: suite.icv]
    if suite.hash.name == "aes-xcbc":
        return xcbc(key, text)[: suite.icv]
    return hmac.digest(key, text, suite.hash.name)[: suite.icv]


def xcbc(key, text):
    """AES-XCBC-MAC (RFC 3566 section 4): CBC under K1, the last block mixed with K2, or padded and mixed with K3."""
    k1, k2, k3 = (aes_cbc(key, bytes([n]) * 16) for n in (1, 2, 3))
    blocks, last = (text[: (len(text) - 1) // 16 * 16], text[(len(text) - 1) // 16 * 16 :]) if text else (b"", b"")
    whole = len(last) == 16
    padded = last if whole else (last + b"\x80").ljust(16, b"\0")
    return aes_cbc(k1, blocks + bytes(a ^ b for a, b in zip(padded, k2 if whole else k3)))[-16:]


def aes_cbc(key, text):
    """AES-CBC without an IV."""
    sealer = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
    return sealer.update(text) + sealer.finalize()


def aead_agrees(suite, material, body, icv, high):
    """Whether OpenSSL accepts the tag of an AEAD; `body` is SPI, sequence number, IV, ciphertext."""
    name, salt = suite.cipher.name, suite.cipher.salt
    key, nonce = material[:-salt], material[-salt:] + body[8:16]
    # RFC 4106 section 5, RFC 4309 section 5, RFC 7634 section 2.1: SPI, then the whole sequence number.
    associated, text = body[:4] + high + body[4:8], body[16:]
    if name.endswith("-gmac"):
        # RFC 4543 section 3.1: all of it is associated, the IV too.
        associated, text = associated + body[8:], b""
    try:
        if name.endswith("-ccm"):
            AESCCM(key, suite.icv).decrypt(nonce, text + icv, associated)
        elif name == "chacha20-poly1305":
            ChaCha20Poly1305(key).decrypt(nonce, text + icv, associated)
        else:
            opener = Cipher(algorithms.AES(key), modes.GCM(nonce, icv, min_tag_length=suite.icv)).decryptor()
            opener.authenticate_additional_data(associated)
            opener.update(text)
            opener.finalize()
    except InvalidTag:
        return False
    return True


def inside(case, direction, packet):
    """What AES-GCM without an extended sequence number's high half, or with one that is 0, has inside, its trailer too."""
    material, salt, icv = case.keys(direction)[0], case.suite.cipher.salt, case.suite.icv
    body, tag = packet.bytes[:-icv], packet.bytes[-icv:]
    opener = Cipher(algorithms.AES(material[:-salt]), modes.GCM(material[-salt:] + body[8:16], tag)).decryptor()
    opener.authenticate_additional_data(body[:4] + (bytes(4) if case.esn else b"") + body[4:8])
    return opener.update(body[16:]) + opener.finalize()


def covered_by_ah(packet, icv):
    """What AH authenticates (RFC 4302 section 3.3.3): the header without what changes on the way, the ICV as zeros."""
    header, body = bytearray(packet.header), bytearray(packet.bytes)
    if packet.outer == 4:
        # TOS, flags and fragment offset, TTL, checksum.
        for field in (slice(1, 2), slice(6, 8), slice(8, 9), slice(10, 12)):
            header[field] = bytes(len(header[field]))
    else:
        # Class and flow label, hop limit.
        header[0:4], header[7:8] = b"\x60\0\0\0", b"\0"
    body[12 : 12 + icv] = bytes(icv)
    return bytes(header + body)


def ask_tshark(cases, capture):
    """Good ICVs, bad ICVs and decrypted packets, by SPI: those in which the case's own traffic was found."""
    with tempfile.TemporaryDirectory() as home:
        # The table of SAs goes into a profile: it is too long for a command line, and its keys are nobody's business.
        table = Path(home) / "esp_sa"
        lines = []
        for case in cases:
            for direction in ("ab", "ba"):
                encryption_key, authentication_key = ("0x" + key.hex() if key else "" for key in case.keys(direction))
                fields = (f"IPv{case.outer}", "*", "*", f"{case.spi(direction):#x}",
                          TSHARK_CIPHERS[case.suite.cipher.name], encryption_key,
                          TSHARK_HASHES[case.suite.hash.name], authentication_key)  # fmt: skip
                lines.append(",".join(f'"{field}"' for field in fields))
        table.write_text("\n".join(lines) + "\n")
        command = ["tshark", "-n", "-r", capture, "-o", "esp.enable_encryption_decode:TRUE",
                   "-o", "esp.enable_authentication_check:TRUE", "-Y", "esp", "-T", "fields",
                   *(word for field in ("esp.spi", "esp.icv_good", "esp.icv_bad", "ip.proto", "icmp.type", "icmpv6.type", "tcp.port",
                                        "ipv6.fraghdr.nxt")
                     for word in ("-e", field))]  # fmt: skip
        environment = {"WIRESHARK_CONFIG_DIR": home, "HOME": home, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"tshark: {done.stderr}")
    out = {}
    for line in done.stdout.splitlines():
        spi, good, bad, protocols, *inside = line.split("\t")
        old = out.get(int(spi, 0), (0, 0, 0))
        seen = (good in ("1", "True"), bad in ("1", "True"), any(inside) or "1" in protocols.split(","))
        out[int(spi, 0)] = tuple(a + b for a, b in zip(old, seen))
    return out
