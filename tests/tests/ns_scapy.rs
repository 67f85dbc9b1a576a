//! scapy as the other gateway: it opens what the engine sealed and seals what the engine opens, for every
//! algorithm, in both families, with and without extended sequence numbers.
//!
//! ```text
//!  ha ---- ga (aditd: one tunnel per suite) ---- wire ---- gb (scapy: one SA pair per suite)
//!  10.1.0.2                                                10.2.N.1 is behind tunnel N
//! ```

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use adit_tests::gateway::{Gateway, Setup};
use adit_tests::process::{Running, eventually};
use adit_tests::topology::Topology;
use adit_tests::wire::Listener;
use serde_json::{Value, json};

/// One suite, as adit and as scapy call it.
struct Suite {
    protocol: &'static str,
    in_udp: bool,
    encryption: &'static str,
    authentication: &'static str,
    icv: u8,
    scapy: (&'static str, &'static str),
}

fn suites() -> Vec<Suite> {
    let ciphers = [
        ("null", "NULL"),
        ("des", "DES"),
        ("3des", "3DES"),
        ("aes-128-cbc", "AES-CBC"),
        ("aes-192-cbc", "AES-CBC"),
        ("aes-256-cbc", "AES-CBC"),
        ("aes-128-ctr", "AES-CTR"),
        ("aes-192-ctr", "AES-CTR"),
        ("aes-256-ctr", "AES-CTR"),
    ];
    // scapy has no XCBC-MAC; that one is proven by RFC 3566's answers and by OpenSSL's AES instead.
    let hashes = [
        ("md5", "HMAC-MD5-96", 12),
        ("sha1", "HMAC-SHA1-96", 12),
        ("sha256", "SHA2-256-128", 16),
        ("sha384", "SHA2-384-192", 24),
        ("sha512", "SHA2-512-256", 32),
        ("aes-cmac", "AES-CMAC-96", 12),
    ];
    let mut suites = Vec::new();
    for (encryption, cipher) in ciphers {
        for (authentication, hash, icv) in hashes {
            suites.push(Suite {
                protocol: "esp",
                in_udp: false,
                encryption,
                authentication,
                icv,
                scapy: (cipher, hash),
            });
        }
    }
    for (authentication, hash, icv) in hashes {
        suites.push(Suite {
            protocol: "ah",
            in_udp: false,
            encryption: "null",
            authentication,
            icv,
            scapy: ("NULL", hash),
        });
    }
    // The tags are OpenSSL's; scapy has GMAC only in ESP.
    for encryption in ["aes-128-gmac", "aes-192-gmac", "aes-256-gmac"] {
        suites.push(Suite {
            protocol: "ah",
            in_udp: false,
            encryption,
            authentication: "none",
            icv: 16,
            scapy: ("NULL", "AES-GMAC"),
        });
    }
    // scapy writes 16-byte ICVs for GCM whatever it is told; 8 and 12 are proven by OpenSSL's answers instead.
    for (encryption, cipher, icvs) in [
        ("aes-128-ccm", "AES-CCM", &[8, 12, 16][..]),
        ("aes-192-ccm", "AES-CCM", &[8, 12, 16]),
        ("aes-256-ccm", "AES-CCM", &[8, 12, 16]),
        ("aes-128-gcm", "AES-GCM", &[16]),
        ("aes-192-gcm", "AES-GCM", &[16]),
        ("aes-256-gcm", "AES-GCM", &[16]),
        ("chacha20-poly1305", "CHACHA20-POLY1305", &[16]),
        ("aes-128-gmac", "AES-NULL-GMAC", &[16]),
        ("aes-192-gmac", "AES-NULL-GMAC", &[16]),
        ("aes-256-gmac", "AES-NULL-GMAC", &[16]),
    ] {
        for &icv in icvs {
            suites.push(Suite {
                protocol: "esp",
                in_udp: false,
                encryption,
                authentication: "none",
                icv,
                scapy: (cipher, "NULL"),
            });
        }
    }
    for (encryption, authentication, icv, scapy) in [
        ("aes-128-gcm", "none", 16, ("AES-GCM", "NULL")),
        ("aes-256-cbc", "sha512", 32, ("AES-CBC", "SHA2-512-256")),
    ] {
        suites.push(Suite { protocol: "esp", in_udp: true, encryption, authentication, icv, scapy });
    }
    suites
}

/// Keys of suite `n`, all different.
fn keys(n: usize, suite: &Suite) -> [(String, String); 2] {
    let [ab, ba] = Setup::new(suite.encryption, suite.authentication).keys;
    // A byte of each key says which suite it belongs to: no key is used twice.
    let mark = |hex: String, salt: usize| match hex.get(4..) {
        Some(rest) => format!("{:02x}{:02x}{rest}", 2 * n + 1, salt),
        None => hex,
    };
    [(mark(ab.0, 0x31), mark(ab.1, 0x53)), (mark(ba.0, 0x75), mark(ba.1, 0x97))]
}

fn every_suite(outer_v6: bool, esn: bool) {
    let topology = Topology::new(1);
    let (local, remote) =
        if outer_v6 { ("2001:db8:f::1", "2001:db8:f::2") } else { ("192.0.2.1", "192.0.2.2") };

    let mut configuration = format!(
        "[engine]\ninstance = \"{}\"\nsocket = \"{dir}/ga.sock\"\nstate-dir = \"{dir}/ga-state\"\nbpffs = \"{dir}/bpf\"\n\
         allow-legacy = true\n\n[[interface]]\nname = \"in0\"\nside = \"protected\"\n\n\
         [[interface]]\nname = \"out0\"\nside = \"unprotected\"\n",
        topology.namespace("ga"),
        dir = topology.directory().display()
    );
    let mut peer = Vec::new();
    for (n, suite) in suites().iter().enumerate() {
        let [ab, ba] = keys(n, suite);
        let (spi_ab, spi_ba) = (0x1000 + n, 0x2000 + n);
        let side = |name: &str, spi: usize, keys: &(String, String)| {
            let mut text = format!("[tunnel.{name}]\nspi = {spi}\n");
            for (field, hex) in [("encryption-key", &keys.0), ("authentication-key", &keys.1)] {
                if !hex.is_empty() {
                    let _ = writeln!(text, "{field} = \"hex:{hex}\"");
                }
            }
            text
        };
        let _ = write!(
            configuration,
            "\n[[tunnel]]\nname = \"t{n}\"\nlocal = \"{local}\"\nremote = \"{remote}\"\nprotocol = \"{}\"\nencryption = \"{}\"\n\
             authentication = \"{}\"\nicv-length = {}\nesn = {esn}\n{}{}{}\n\
             [[policy]]\nname = \"p{n}v4\"\naction = \"protect\"\ntunnel = \"t{n}\"\nlocal = [\"10.1.0.0/24\"]\nremote = [\"10.2.{n}.0/24\"]\n\
             [[policy]]\nname = \"p{n}v6\"\naction = \"protect\"\ntunnel = \"t{n}\"\nlocal = [\"2001:db8:1::/64\"]\nremote = [\"2001:db8:2:{n:x}::/64\"]\n",
            suite.protocol,
            suite.encryption,
            suite.authentication,
            suite.icv,
            if suite.in_udp { "udp-port = 4500\n" } else { "" },
            side("inbound", spi_ba, &ba),
            side("outbound", spi_ab, &ab),
        );
        peer.push(json!({
            "protocol": suite.protocol, "udp": suite.in_udp, "spi_in": spi_ab, "spi_out": spi_ba,
            "crypt": suite.scapy.0, "auth": suite.scapy.1,
            "icv": suite.scapy.1.starts_with("NULL").then_some(suite.icv),
            "crypt_key_in": ab.0, "auth_key_in": ab.1, "crypt_key_out": ba.0, "auth_key_out": ba.1,
            "esn": esn, "local": remote, "remote": local,
        }));
    }

    let listener = Listener::start(&topology, "left");
    let python = std::env::var("ADIT_SCAPY_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = topology.command("gb", python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/scapy_gateway.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut scapy = Running::start(&mut command);
    writeln!(scapy.0.stdin.as_mut().unwrap(), "{}", Value::from(peer)).unwrap();
    let (said, told) = std::sync::mpsc::channel::<Value>();
    let output = BufReader::new(scapy.0.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let _ = said.send(serde_json::from_str(&line).unwrap_or_else(|_| json!({ "error": line })));
        }
    });
    let ready = told.recv_timeout(Duration::from_secs(30)).expect("scapy starts");
    assert_eq!(ready["event"], "ready", "{ready}");

    let gateway = Gateway::start_with(&topology, "ga", &configuration);
    for (n, suite) in suites().iter().enumerate() {
        let Suite { protocol, encryption, authentication, icv, .. } = suite;
        let what =
            format!("{protocol} {encryption} {authentication} icv {icv} esn {esn} outer v6 {outer_v6}");
        for target in [format!("10.2.{n}.1"), format!("2001:db8:2:{n:x}::1")] {
            // Sizes around the padding's corners.
            for size in ["1", "14", "15", "1200"] {
                let ping = topology.attempt("ha", &format!("ping -c 1 -W 3 -s {size} {target}"));
                let event = told.recv_timeout(Duration::from_secs(3));
                assert!(
                    ping.status.success() && event.as_ref().is_ok_and(|event| event["answered"] == true),
                    "{what} size {size} {target}: scapy says {event:?}\nping: {}\ndrops: {}",
                    String::from_utf8_lossy(&ping.stdout),
                    gateway.adit(&["drops"]),
                );
            }
        }
    }
    let sent = suites().len() as u64 * 8;
    let heard = listener.stop();
    heard.assert_no_clear_text(|_, _| false);
    heard.assert_sequence_numbers_unique();
    assert_eq!(heard.esp_from(local.parse().unwrap()), sent, "packets the engine put on the wire");
    assert_eq!(heard.esp_from(remote.parse().unwrap()), sent, "packets scapy put on the wire");
    eventually("all counted", Duration::from_secs(2), || gateway.totals().in_flight == 0);
    let totals = gateway.totals();
    assert_eq!((totals.sealed, totals.opened, totals.dropped), (sent, sent, 0), "{totals:?}");
}

#[test]
fn scapy_opens_and_seals_every_suite_over_ipv4() {
    every_suite(false, false);
}

#[test]
fn scapy_opens_and_seals_every_suite_over_ipv6_with_esn() {
    every_suite(true, true);
}

/// The peer itself must be able to say no: a wrong key is noticed.
#[test]
fn scapy_notices_a_wrong_key() {
    let python = std::env::var("ADIT_SCAPY_PYTHON").unwrap_or_else(|_| "python3".into());
    let check = "
from scapy.layers.ipsec import *
from scapy.layers.inet import *
seal = SecurityAssociation(ESP, spi=1, crypt_algo='AES-GCM', crypt_key=b'k'*20, tunnel_header=IP())
other = SecurityAssociation(ESP, spi=1, crypt_algo='AES-GCM', crypt_key=b'j'*20, tunnel_header=IP())
try:
    other.decrypt(seal.encrypt(IP()/ICMP()))
except Exception as error:
    print(type(error).__name__)
";
    let output = Command::new(python).args(["-c", check]).output().expect("python runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "IPSecIntegrityError");
}
