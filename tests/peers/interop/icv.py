"""A third party's word on every ICV of a run: tshark's where it can, OpenSSL's where tshark cannot.

tshark 4.0 decrypts GCM without checking its tags, does not know CCM, and does not know the high half of an extended
sequence number; these ICVs OpenSSL computes.
"""

import hashlib
import hmac
import subprocess
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

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
        tshark = not trial.case.esn and suite.hash and suite.cipher and suite.cipher.name in TSHARK_CIPHERS
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
    """Whether OpenSSL computes this ICV for an ESP packet; no SA here has sent 2^32, so the high half is 0."""
    encryption_key, authentication_key = case.keys(direction)
    suite, esp = case.suite, packet.bytes
    body, icv = esp[: -suite.icv], esp[-suite.icv :]
    high = bytes(4) if case.esn else b""
    if suite.hash:
        # RFC 4303 section 2.2.1: the high half is authenticated behind the packet, and not sent.
        computed = hmac.digest(authentication_key, body + high, suite.hash.name)[: suite.icv]
        return hmac.compare_digest(computed, icv)
    salt = suite.cipher.salt
    key, nonce = encryption_key[:-salt], encryption_key[-salt:] + esp[8:16]
    # RFC 4106 section 5, RFC 4309 section 5: SPI, then the whole sequence number.
    associated = esp[:4] + high + esp[4:8]
    try:
        if suite.cipher.name.endswith("-ccm"):
            AESCCM(key, suite.icv).decrypt(nonce, body[16:] + icv, associated)
        else:
            mode = modes.GCM(nonce, icv, min_tag_length=suite.icv)
            opener = Cipher(algorithms.AES(key), mode).decryptor()
            opener.authenticate_additional_data(associated)
            opener.update(body[16:])
            opener.finalize()
    except InvalidTag:
        return False
    return True


def ask_tshark(cases, capture):
    """Good ICVs, bad ICVs and packets with a decrypted IP packet inside, by SPI."""
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
                   *(word for field in ("esp.spi", "esp.icv_good", "esp.icv_bad", "ip.version", "ipv6.version")
                     for word in ("-e", field))]  # fmt: skip
        environment = {"WIRESHARK_CONFIG_DIR": home, "HOME": home, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"tshark: {done.stderr}")
    out = {}
    for line in done.stdout.splitlines():
        spi, good, bad, *versions = line.split("\t")
        headers = sum(len(version.split(",")) for version in versions if version)
        old = out.get(int(spi, 0), (0, 0, 0))
        seen = (good in ("1", "True"), bad in ("1", "True"), headers >= 2)
        out[int(spi, 0)] = tuple(a + b for a, b in zip(old, seen))
    return out
