//! Sequence leases: no number of a manual key is ever used twice, whatever becomes of this process.
//!
//! A counter-mode key whose counter is lost must never send again: the same (key, nonce) twice gives the plaintext
//! and the authentication key away. So a number is sent only at or below a ceiling that is already on stable
//! storage, and after a crash the next one is above it: `sent(n)` implies `n <= ceiling`. The same for what is
//! received: a number is accepted only at or below a ceiling, and after a crash all of them count as received, so
//! that nobody can send the recorded past again. Keys that die with the process have no lease, and never come here.
//!
//! ```text
//! worker ── takes numbers ≤ ceiling, rings at half ──▶ Lease ◀── raises ── keeper ── write, sync ──▶ leases
//!                                                                            └────── then ────▶ leases.witness
//! ```
//!
//! A record's identity is its key, by a fingerprint under `host-secret`; no file holds key bytes. Records are never
//! removed. The first use of a key is declared, once, by a command; there is no line in the configuration for it,
//! because a line stays: with the state directory lost, it would declare a used key fresh again.
//!
//! What is missing, damaged, of another host, put back, or a copy refuses the start, or the SA. A snapshot of the
//! whole disk that is restored cannot be told from its original: that is not supported with manual keys.

mod book;
mod directory;
mod fresh;
mod pace;
mod slot;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

pub use self::book::{Grant, Known};
use self::directory::Files;
pub use self::fresh::declare_fresh;
pub(super) use self::fresh::mark_fresh;
use crate::crypto::Suite;
use crate::sa::selector::Direction;
use crate::sa::{Lease, publish};

/// Names a key without telling it: see [`crate::crypto::key::fingerprint`].
pub type Fingerprint = [u8; 16];

/// What a key is used for, once and for all: one that was received with never sends, and one of GCM never serves CCM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Purpose {
    /// Who counts.
    pub direction: Direction,
    algorithm: [u8; 8],
}

impl Purpose {
    /// Of an SA with this suite.
    pub fn new(direction: Direction, suite: Suite) -> Self {
        Self { direction, algorithm: slot::algorithm(suite.encryption().name()) }
    }
}

/// Why a state directory cannot be used.
#[derive(Debug)]
pub enum LeaseError {
    /// Another daemon has it.
    Locked(PathBuf),
    /// Others could change it.
    Unsafe(PathBuf, String),
    /// A file is not what it was.
    Corrupt(PathBuf, &'static str),
    /// The system refused.
    Io(PathBuf, io::Error),
}

impl std::fmt::Display for LeaseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Locked(path) => write!(
                f,
                "{}: another aditd uses this state directory; stop it, or give this one its own engine.state-dir",
                path.display()
            ),
            Self::Unsafe(path, what) => {
                write!(f, "{}: {what}; who can write there can make used numbers look new", path.display())
            }
            Self::Corrupt(path, what) => write!(
                f,
                "{}: {what}; which numbers were used is no longer known, so nothing is sent. Empty the state \
                 directory and give every tunnel new keys (adit key generate)",
                path.display()
            ),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for LeaseError {}

/// Between two looks at every lease.
const TICK: Duration = Duration::from_secs(1);
/// After an error of the disk.
const RETRY: Duration = Duration::from_secs(1);
/// An answer of the disk that takes longer is told.
const SLOW: Duration = Duration::from_secs(2);
/// How long lowering waits for workers.
const GRACE: Duration = Duration::from_millis(100);

/// The leases of a state directory; closing them lets the next daemon in.
pub struct Leases {
    directory: PathBuf,
    secret: Zeroizing<[u8; 32]>,
    book: Mutex<book::Book<Files>>,
    health: Mutex<Health>,
    keeper: Arc<OnceLock<Thread>>,
    _lock: directory::Lock,
}

/// How storage answers.
#[derive(Default)]
struct Health {
    asked: Option<Instant>,
    error: Option<(String, Instant)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leases {
    /// Takes the directory over, creating it and its files at the very first start.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn open(directory: &Path) -> Result<Self, LeaseError> {
        let directory::Directory { secret, files, lock } = directory::open(directory)?;
        let book = book::Book::open(files, secret.clone());
        let book = book.map_err(|error| LeaseError::Io(directory.to_owned(), error))?;
        Ok(Self {
            directory: directory.to_owned(),
            secret,
            book: Mutex::new(book),
            health: Mutex::default(),
            keeper: Arc::default(),
            _lock: lock,
        })
    }

    /// Keys the fingerprints of this host.
    pub fn host_secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Where records are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is recorded of a key.
    pub fn known(&self, id: &Fingerprint) -> Option<Known> {
        lock(&self.book).known(id)
    }

    /// A lease for an SA that is not in use yet: above everything recorded, and nothing may be used before
    /// [`Leases::grant`].
    pub fn begin(&self, id: &Fingerprint) -> Arc<Lease> {
        let used = lock(&self.book).begin(id);
        let keeper = Arc::clone(&self.keeper);
        let bell = move || {
            if let Some(keeper) = keeper.get() {
                keeper.unpark();
            }
        };
        Arc::new(Lease::starting_after(used, Box::new(bell)))
    }

    /// Puts leases on stable storage, with a record where there is none; when this returns their SAs may be used.
    ///
    /// # Errors
    /// Nothing is granted.
    pub fn grant(&self, grants: &[Grant]) -> Result<(), LeaseError> {
        if grants.is_empty() {
            return Ok(());
        }
        self.with_storage(|book| book.grant(grants, Instant::now()))
            .map_err(|error| LeaseError::Io(self.directory.clone(), error))
    }

    /// Gives back what was not used, so that a start after an orderly end burns nothing. No worker runs any more.
    ///
    /// # Errors
    /// The next start begins above the ceilings, as after a crash.
    pub fn release(&self) -> Result<(), LeaseError> {
        self.with_storage(book::Book::release).map_err(|error| LeaseError::Io(self.directory.clone(), error))
    }

    /// What is wrong with storage, for the operator.
    pub fn trouble(&self) -> Option<String> {
        let health = lock(&self.health);
        let directory = self.directory.display();
        let what = match (&health.error, health.asked) {
            (Some((error, since)), _) => {
                format!("{directory} cannot be written for {} s ({error})", since.elapsed().as_secs())
            }
            (None, Some(asked)) if asked.elapsed() > SLOW => {
                format!("{directory} has not answered for {} s", asked.elapsed().as_secs())
            }
            _ => return None,
        };
        Some(format!(
            "sequence leases: {what}: SAs go on inside what is recorded, then stop (lease_exhausted, replay_floor)"
        ))
    }

    fn with_storage(&self, ask: impl FnOnce(&mut book::Book<Files>) -> io::Result<()>) -> io::Result<()> {
        let mut book = lock(&self.book);
        lock(&self.health).asked = Some(Instant::now());
        let answer = ask(&mut book);
        let mut health = lock(&self.health);
        health.asked = None;
        match (&answer, &mut health.error) {
            (Ok(()), None) => {}
            (Ok(()), error) => {
                *error = None;
                tracing::info!("sequence leases: storage works again");
            }
            (Err(found), Some((error, _))) => *error = found.to_string(),
            (Err(found), none) => {
                *none = Some((found.to_string(), Instant::now()));
                tracing::error!(error = %found, directory = %self.directory.display(), "sequence leases");
            }
        }
        answer
    }
}

/// The thread that extends leases ahead of use; it ends with this.
pub struct Keeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Keeps `leases` until dropped.
    ///
    /// # Errors
    /// The system has no thread, or there is a keeper already.
    pub fn start(leases: Arc<Leases>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let bell = Arc::clone(&leases.keeper);
        let keep = move || keep(&leases, &told);
        let thread = thread::Builder::new().name("adit-leases".into()).spawn(keep)?;
        bell.set(thread.thread().clone()).map_err(|_| io::Error::other("leases have one keeper"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn keep(leases: &Leases, stop: &AtomicBool) {
    let mut ticked = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::park_timeout(TICK.saturating_sub(ticked.elapsed()));
        let now = Instant::now();
        let mut kept = leases.with_storage(|book| book.extend(now));
        if ticked.elapsed() >= TICK {
            ticked = now;
            kept = kept
                .and_then(|()| leases.with_storage(|book| book.lower(now, || publish::synchronize(GRACE))));
        }
        if kept.is_err() {
            // Whoever rings meanwhile is not helped by asking a broken disk more often.
            thread::sleep(RETRY);
        }
    }
}

#[cfg(test)]
mod tests;
