//! tshark as a reader of ESP: what it decrypts, and what it says of the integrity check values.

use std::path::Path;
use std::process::Command;

use crate::process::run;

/// An SA of AES-CBC and HMAC-SHA-256-128, whose ICVs tshark computes: SPI, encryption key and authentication key in hex.
pub type Sa<'k> = (u32, &'k str, &'k str);

/// A frame with ESP in it, as tshark reads it; the outermost layer first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// SPIs.
    pub spis: Vec<u32>,
    /// Next headers, as decrypted.
    pub next_headers: Vec<u8>,
    /// Whether each ICV is right.
    pub icvs: Vec<bool>,
}

/// Every frame with ESP in a capture.
///
/// # Panics
/// When tshark says something else than expected.
pub fn open(capture: &Path, sas: &[Sa<'_>]) -> Vec<Opened> {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-r"]).arg(capture);
    tshark.args(["-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"]);
    for (spi, encryption, authentication) in sas {
        for version in ["IPv4", "IPv6"] {
            tshark.arg("-o").arg(format!(
                "uat:esp_sa:\"{version}\",\"*\",\"*\",\"{spi:#010x}\",\"AES-CBC [RFC3602]\",\"0x{encryption}\",\
                 \"HMAC-SHA-256-128 [RFC4868]\",\"0x{authentication}\""
            ));
        }
    }
    tshark.args([
        "-Y",
        "esp",
        "-T",
        "fields",
        "-e",
        "esp.spi",
        "-e",
        "esp.decrypted_data",
        "-e",
        "esp.icv_good",
    ]);
    let text = String::from_utf8(run(&mut tshark).stdout).expect("tshark speaks UTF-8");
    let read = |line: &str| {
        let mut fields = line.split('\t').map(|field| field.split(',').filter(|value| !value.is_empty()));
        let mut values = || fields.next().unwrap_or_else(|| panic!("too few fields: {line}"));
        let hex =
            |text: &str| u32::from_str_radix(text, 16).unwrap_or_else(|error| panic!("{error}: {text}"));
        Opened {
            spis: values().map(|spi| hex(spi.trim_start_matches("0x"))).collect(),
            // The trailer's last byte: tshark names those only that it goes on with.
            next_headers: values().map(|decrypted| hex(&decrypted[decrypted.len() - 2..]) as u8).collect(),
            icvs: values().map(|is_right| matches!(is_right, "1" | "True")).collect(),
        }
    };
    text.lines().map(read).collect()
}
