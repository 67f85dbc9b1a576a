//! Burnt keys: which manual keys this host has ever sent with.
//!
//! A counter-mode key whose counter is lost must never send again: the same (key, nonce) twice gives the
//! plaintext and the authentication key away. So the keyed fingerprint of every outbound key is on stable
//! storage before the first packet, and a recorded counter-mode key is refused for ever. A recorded CBC or
//! null key only repeats sequence numbers, which the operator may accept tunnel by tunnel.
//!
//! `state-dir/host-secret` keys the fingerprints, `state-dir/burnt-keys` holds them under a MAC, and
//! `state-dir/lock` keeps a second daemon out. No file holds key bytes. A file that is missing, damaged or of
//! another host refuses the start: a guess here would be a repeated nonce.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use rustix::fs::{FlockOperation, OFlags};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Names a key without telling it: see [`crate::crypto::key::fingerprint`].
pub type Fingerprint = [u8; 16];

const HEADER: &str = "adit burnt keys 2";
const SECRET_FILE: &str = "host-secret";
const RING_FILE: &str = "burnt-keys";

/// What using a recorded key again would repeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Counter modes: nonces. Refused for ever.
    Counter,
    /// CBC, null: sequence numbers. Refused unless the operator accepts the risk.
    Block,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Block => "block",
        }
    }
}

/// Why a state directory cannot be used.
#[derive(Debug)]
pub enum KeyringError {
    /// Another daemon has it.
    Locked(PathBuf),
    /// Others could change it.
    Unsafe(PathBuf, String),
    /// A file is not what it was.
    Corrupt(PathBuf, &'static str),
    /// The system refused.
    Io(PathBuf, io::Error),
}

impl std::fmt::Display for KeyringError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Locked(path) => write!(
                f,
                "{}: another aditd uses this state directory; stop it, or give this one its own engine.state-dir",
                path.display()
            ),
            Self::Unsafe(path, what) => {
                write!(f, "{}: {what}; who can write there can make used keys look new", path.display())
            }
            Self::Corrupt(path, what) => write!(
                f,
                "{}: {what}; which keys were used is no longer known, so nothing is sent. Restore the file, or \
                 empty the state directory and give every tunnel new keys (adit key generate)",
                path.display()
            ),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for KeyringError {}

/// The open state directory; closing it lets the next daemon in.
pub struct Keyring {
    directory: PathBuf,
    secret: Zeroizing<[u8; 32]>,
    recorded: BTreeMap<Fingerprint, Kind>,
    _lock: File,
}

impl Keyring {
    /// Takes the directory over, creating it and its files at the very first start.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn open(directory: &Path) -> Result<Self, KeyringError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| KeyringError::Io(path, error)
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io(directory))?;
        only_ours(directory)?;
        let lock_path = directory.join("lock");
        let lock = private(&lock_path, false).map_err(io(&lock_path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| KeyringError::Locked(directory.to_owned()))?;
        let (secret_path, ring_path) = (directory.join(SECRET_FILE), directory.join(RING_FILE));
        let secret = read_if_there(&secret_path).map_err(io(&secret_path))?;
        let ring = read_if_there(&ring_path).map_err(io(&ring_path))?;
        let (secret, recorded) = match (secret, ring) {
            (Some(secret), Some(ring)) => {
                let secret: [u8; 32] = secret
                    .as_slice()
                    .try_into()
                    .map_err(|_| KeyringError::Corrupt(secret_path, "expected 32 bytes"))?;
                let secret = Zeroizing::new(secret);
                let recorded =
                    parse(&ring, &secret).map_err(|what| KeyringError::Corrupt(ring_path, what))?;
                (secret, recorded)
            }
            (Some(_), None) => return Err(KeyringError::Corrupt(ring_path, "the file is missing")),
            (None, Some(ring)) if holds_keys(&ring) => {
                return Err(KeyringError::Corrupt(secret_path, "the file is missing"));
            }
            // The first start, or one that was cut off before any key could be used.
            (None, _) => {
                let mut secret = Zeroizing::new([0; 32]);
                getrandom::fill(secret.as_mut()).map_err(|error| {
                    KeyringError::Io(secret_path.clone(), io::Error::other(error.to_string()))
                })?;
                let recorded = BTreeMap::new();
                replace(directory, RING_FILE, render(&recorded, &secret).as_bytes())
                    .map_err(io(&ring_path))?;
                replace(directory, SECRET_FILE, secret.as_ref()).map_err(io(&secret_path))?;
                (secret, recorded)
            }
        };
        Ok(Self { directory: directory.to_owned(), secret, recorded, _lock: lock })
    }

    /// Keys the fingerprints of this host.
    pub fn host_secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// How a key was used before, if it was.
    pub fn used(&self, fingerprint: &Fingerprint) -> Option<Kind> {
        self.recorded.get(fingerprint).copied()
    }

    /// Puts keys on stable storage; when this returns they may send. What is recorded stays recorded.
    ///
    /// # Errors
    /// Nothing is recorded in memory; on storage, the old file or the new one stands, never a mixture.
    pub fn record(&mut self, keys: &[(Fingerprint, Kind)]) -> Result<(), KeyringError> {
        let fresh: Vec<_> =
            keys.iter().copied().filter(|(fingerprint, _)| self.used(fingerprint).is_none()).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let mut recorded = self.recorded.clone();
        recorded.extend(fresh);
        replace(&self.directory, RING_FILE, render(&recorded, &self.secret).as_bytes())
            .map_err(|error| KeyringError::Io(self.directory.join(RING_FILE), error))?;
        self.recorded = recorded;
        Ok(())
    }
}

/// Refuses a directory whose files others could replace: an old ring put back is a repeated nonce.
fn only_ours(directory: &Path) -> Result<(), KeyringError> {
    let metadata =
        std::fs::metadata(directory).map_err(|error| KeyringError::Io(directory.to_owned(), error))?;
    let refused = |what| Err(KeyringError::Unsafe(directory.to_owned(), what));
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != own {
        return refused(format!(
            "expected a directory of root or of uid {own}, found one of uid {}",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o7777;
        return refused(format!(
            "expected a directory that only its owner can write (0700), found mode {mode:04o}"
        ));
    }
    Ok(())
}

fn private(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(truncate)
        .mode(0o600)
        .custom_flags((OFlags::CLOEXEC | OFlags::NOFOLLOW).bits() as i32)
        .open(path)
}

fn read_if_there(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map(|_| Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file whole: written beside it, synced, renamed over it, and the directory synced. A failed sync
/// fails the call; it is never tried again on the same pages, whose error state the kernel may have cleared.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.new"));
    let mut file = private(&temporary, true)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

fn mac(body: &[u8], secret: &[u8; 32]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(b"burnt-keys");
    mac.update(body);
    mac
}

fn render(recorded: &BTreeMap<Fingerprint, Kind>, secret: &[u8; 32]) -> String {
    let mut text = format!("{HEADER}\n");
    for (fingerprint, kind) in recorded {
        text.push_str(&format!("{} {}\n", kind.name(), hex::encode(fingerprint)));
    }
    let tag = mac(text.as_bytes(), secret).finalize().into_bytes();
    text.push_str(&format!("mac {}\n", hex::encode(tag)));
    text
}

fn holds_keys(ring: &[u8]) -> bool {
    ring.iter().filter(|byte| **byte == b'\n').count() != 2
}

fn parse(ring: &[u8], secret: &[u8; 32]) -> Result<BTreeMap<Fingerprint, Kind>, &'static str> {
    const DAMAGED: &str = "the file is damaged, or of another host";
    let text = std::str::from_utf8(ring).map_err(|_| DAMAGED)?;
    let (body, tag) = text.strip_suffix('\n').and_then(|text| text.rsplit_once('\n')).ok_or(DAMAGED)?;
    let tag = tag.strip_prefix("mac ").and_then(|tag| hex::decode(tag).ok()).ok_or(DAMAGED)?;
    mac(&ring[..=body.len()], secret).verify_slice(&tag).map_err(|_| DAMAGED)?;
    let mut lines = body.lines();
    if lines.next() != Some(HEADER) {
        return Err("the file is of another version");
    }
    lines
        .map(|line| {
            let (kind, digits) = line.split_once(' ')?;
            let kind = [Kind::Counter, Kind::Block].into_iter().find(|known| known.name() == kind)?;
            let mut fingerprint = Fingerprint::default();
            hex::decode_to_slice(digits, &mut fingerprint).ok()?;
            Some((fingerprint, kind))
        })
        .collect::<Option<_>>()
        .ok_or(DAMAGED)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory(PathBuf);
    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("adit-keyring-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }
    }
    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_recorded_key_stays_recorded() {
        let directory = Directory::new("stays");
        let mut keyring = Keyring::open(&directory.0).unwrap();
        let secret = *keyring.host_secret();
        keyring.record(&[([1; 16], Kind::Counter), ([2; 16], Kind::Block)]).unwrap();
        keyring.record(&[([1; 16], Kind::Block)]).unwrap();
        drop(keyring);
        let keyring = Keyring::open(&directory.0).unwrap();
        assert_eq!(*keyring.host_secret(), secret);
        assert_eq!(keyring.used(&[1; 16]), Some(Kind::Counter), "a kind is never weakened");
        assert_eq!(keyring.used(&[2; 16]), Some(Kind::Block));
        assert_eq!(keyring.used(&[3; 16]), None);
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let directory = Directory::new("lock");
        let keyring = Keyring::open(&directory.0).unwrap();
        assert!(matches!(Keyring::open(&directory.0), Err(KeyringError::Locked(_))));
        drop(keyring);
        assert!(Keyring::open(&directory.0).is_ok());
    }

    #[test]
    fn damage_anywhere_refuses_the_start() {
        let directory = Directory::new("damage");
        Keyring::open(&directory.0).unwrap().record(&[([7; 16], Kind::Counter)]).unwrap();
        let ring = directory.0.join(RING_FILE);
        let good = std::fs::read(&ring).unwrap();
        let refused = || matches!(Keyring::open(&directory.0), Err(KeyringError::Corrupt(..)));
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            std::fs::write(&ring, &bad).unwrap();
            assert!(refused(), "bit flipped at {position}");
            std::fs::write(&ring, &good[..position]).unwrap();
            assert!(refused(), "cut at {position}");
        }
        std::fs::remove_file(&ring).unwrap();
        assert!(refused(), "ring removed");
        std::fs::write(&ring, &good).unwrap();
        let secret = directory.0.join(SECRET_FILE);
        let bytes = std::fs::read(&secret).unwrap();
        std::fs::write(&secret, [0; 32]).unwrap();
        assert!(refused(), "of another host");
        std::fs::remove_file(&secret).unwrap();
        assert!(refused(), "secret removed");
        std::fs::write(&secret, bytes).unwrap();
        assert_eq!(Keyring::open(&directory.0).unwrap().used(&[7; 16]), Some(Kind::Counter));
    }

    #[test]
    fn a_first_start_cut_off_is_taken_up_again() {
        let directory = Directory::new("first");
        drop(Keyring::open(&directory.0).unwrap());
        std::fs::remove_file(directory.0.join(SECRET_FILE)).unwrap();
        assert!(Keyring::open(&directory.0).is_ok(), "no key was recorded yet");
    }

    #[test]
    fn what_cannot_be_stored_is_not_recorded() {
        let directory = Directory::new("full");
        let mut keyring = Keyring::open(&directory.0).unwrap();
        // A directory where the new file should go: the write fails whoever we are.
        std::fs::create_dir(directory.0.join("burnt-keys.new")).unwrap();
        assert!(matches!(keyring.record(&[([1; 16], Kind::Counter)]), Err(KeyringError::Io(..))));
        assert_eq!(keyring.used(&[1; 16]), None);
    }

    #[test]
    fn a_directory_that_others_could_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = Directory::new("writable");
        drop(Keyring::open(&directory.0).unwrap());
        let set = |mode| std::fs::set_permissions(&directory.0, PermissionsExt::from_mode(mode)).unwrap();
        for mode in [0o720, 0o702, 0o1777] {
            set(mode);
            let error = Keyring::open(&directory.0).err().expect("others could write").to_string();
            assert!(error.contains(&format!("found mode {mode:04o}")), "{error}");
        }
        for mode in [0o700, 0o755] {
            set(mode);
            assert!(Keyring::open(&directory.0).is_ok());
        }
        // Only root can give a directory away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&directory.0, Some(12_345), None).unwrap();
            let error = Keyring::open(&directory.0).err().expect("another's").to_string();
            assert!(error.contains("found one of uid 12345"), "{error}");
        }
    }

    #[test]
    fn the_files_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = Directory::new("mode");
        let _keyring = Keyring::open(&directory.0).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory.0), 0o700);
        for name in [SECRET_FILE, RING_FILE, "lock"] {
            assert_eq!(mode(&directory.0.join(name)), 0o600, "{name}");
        }
    }
}
