//! Reading keys: `hex:` inline, or `file:` from a file that nobody else can read. No message holds key bytes.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::config::Secret;
use crate::crypto::key::{Key, KeyError, KeyMaterial, KeyRole};
use crate::crypto::{Opener, Suite};

/// Longest key file in bytes; the longest key is 64 bytes.
const FILE_LIMIT: u64 = 1024;

/// The bytes that `secret` names. `files`: a path may be followed (the file's author is its reader's operator).
pub(super) fn load(secret: &Secret, files: bool) -> Result<Key, String> {
    let text = secret.expose();
    if let Some(digits) = text.strip_prefix("hex:") {
        return decode(digits);
    }
    match text.strip_prefix("file:") {
        Some(path) if files => from_file(Path::new(path)),
        Some(_) => Err("expected \"hex:\" and hexadecimal digits; key files are read by the client".into()),
        None => {
            Err("expected \"hex:\" and hexadecimal digits, or \"file:\" and a path; the value is not shown"
                .into())
        }
    }
}

/// The text of a key file: hexadecimal digits, with or without `hex:`, and blanks around them.
pub(super) fn read_file(path: &Path) -> Result<Zeroizing<String>, String> {
    let shown = path.display();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::CLOEXEC | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .map_err(|error| format!("expected a readable key file, found {shown}: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("{shown}: {error}"))?;
    let owner = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        return Err(format!("expected a regular file, found {shown}, which is none"));
    }
    if metadata.uid() != 0 && metadata.uid() != owner {
        return Err(format!(
            "expected a file of root or of uid {owner}, found {shown} of uid {}",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "expected mode 0600, found {shown} with {:04o}; chmod 600 {shown}",
            metadata.mode() & 0o7777
        ));
    }
    // One allocation that never grows, so that no copy is left behind.
    let mut text = Zeroizing::new(String::with_capacity(FILE_LIMIT as usize + 1));
    file.take(FILE_LIMIT + 1)
        .read_to_string(&mut text)
        .map_err(|_| format!("expected hexadecimal digits, found something else in {shown}"))?;
    if text.len() as u64 > FILE_LIMIT {
        return Err(format!("expected at most {FILE_LIMIT} bytes, found more in {shown}"));
    }
    Ok(text)
}

fn from_file(path: &Path) -> Result<Key, String> {
    let text = read_file(path)?;
    let digits = text.trim();
    decode(digits.strip_prefix("hex:").unwrap_or(digits))
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn decode(digits: &str) -> Result<Key, String> {
    let mut bytes = Zeroizing::new(vec![0; digits.len() / 2].into_boxed_slice());
    match hex::decode_to_slice(digits, &mut bytes) {
        Ok(()) if !digits.is_empty() => Ok(Key::new(bytes)),
        // The decoder's own message quotes a digit of the key.
        _ => Err("expected an even number of hexadecimal digits; the value is not shown".into()),
    }
}

/// The field of a refused key beside the SA's own, and what to say.
pub(super) fn describe(error: KeyError, suite: Suite) -> (&'static str, String) {
    let encryption = suite.encryption().name();
    match error {
        KeyError::Length { role: KeyRole::Encryption, expected, found } => {
            let salt = match suite.encryption().salt_length() {
                0 => String::new(),
                length => format!(", the last {length} of them the salt"),
            };
            let message = format!(
                "expected {expected} bytes for {encryption}{salt}, found {found}; \
                 adit key generate --encryption {encryption} makes one"
            );
            ("encryption-key", message)
        }
        KeyError::Length { role: KeyRole::Authentication, expected, found } => {
            let authentication = suite.authentication().name();
            let message = format!(
                "expected {expected} bytes for {authentication}, found {found}; \
                 adit key generate --encryption {encryption} --authentication {authentication} makes one"
            );
            ("authentication-key", message)
        }
        KeyError::Weak => (
            "encryption-key",
            format!(
                "expected a key that is not weak (RFC 2405, RFC 2451), found one that is; \
                 adit key generate --encryption {encryption} makes one"
            ),
        ),
    }
}

/// The SA's keys as `[tunnel.inbound]` writes them; empty when the algorithm has none.
pub(super) fn absent() -> Key {
    Key::new(Zeroizing::new(Box::new([])))
}

/// Writes a key to a new file that only its owner can read.
pub(super) fn write_file(path: &Path, secret: &Secret) -> Result<(), String> {
    use std::io::Write as _;
    let shown = path.display();
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlags::CLOEXEC.bits() as i32)
        .open(path)
        .and_then(|mut file| {
            file.write_all(secret.expose().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        })
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!("expected a new file, but {shown} exists; a key is never overwritten")
            }
            _ => format!("expected a place for a new file: {error}"),
        })
}

/// New random keys for `suite`, as the configuration writes them; none where the algorithm has none.
pub(super) fn generate(suite: Suite) -> Result<(Option<Secret>, Option<Secret>), String> {
    loop {
        let encryption = random(suite.encryption_key_length())?;
        let authentication = random(suite.authentication_key_length())?;
        let key = |bytes: &Zeroizing<Box<[u8]>>| Key::new(bytes.clone());
        let material = KeyMaterial { encryption: key(&encryption), authentication: key(&authentication) };
        match Opener::new(suite, &material, true) {
            Ok(_) => return Ok((written(&encryption), written(&authentication))),
            // One in 2^52 for DES.
            Err(KeyError::Weak) => {}
            Err(error) => return Err(describe(error, suite).1),
        }
    }
}

fn random(length: usize) -> Result<Zeroizing<Box<[u8]>>, String> {
    let mut bytes = Zeroizing::new(vec![0; length].into_boxed_slice());
    getrandom::fill(&mut bytes).map_err(|error| format!("expected entropy from the kernel: {error}"))?;
    Ok(bytes)
}

fn written(bytes: &[u8]) -> Option<Secret> {
    if bytes.is_empty() {
        return None;
    }
    let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 2 + 4));
    text.push_str("hex:");
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    Some(Secret::new(text))
}
