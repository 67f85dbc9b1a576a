//! The state directory: whose it is, what is in it, and that nobody else has it open.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, OFlags, StatxFlags};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::LeaseError;
use super::book::{Area, Storage};
use super::slot::{self, BLOCK, Identity};

const SECRET_FILE: &str = "host-secret";
const LEASES_FILE: &str = "leases";
const WITNESS_FILE: &str = "leases.witness";

/// A directory taken over.
pub(super) struct Directory {
    pub(super) secret: Zeroizing<[u8; 32]>,
    pub(super) files: Files,
    /// Held while the daemon lives.
    pub(super) lock: Lock,
}

/// Keeps others out while it lives.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would do, but for a child that is being started and holds everything until it runs its program.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the directory over, creating it and its files at the very first start.
pub(super) fn open(directory: &Path) -> Result<Directory, LeaseError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| LeaseError::Io(path, error)
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io(directory))?;
    only_ours(directory)?;
    let lock_path = directory.join("lock");
    let lock = private(&lock_path, false).map_err(io(&lock_path))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| LeaseError::Locked(directory.to_owned()))?;
    let lock = Lock(lock);

    let secret_path = directory.join(SECRET_FILE);
    let paths = [directory.join(LEASES_FILE), directory.join(WITNESS_FILE)];
    let secret = match read_if_there(&secret_path).map_err(io(&secret_path))? {
        Some(bytes) => {
            let secret = bytes.as_slice().try_into();
            secret.map_err(|_| LeaseError::Corrupt(secret_path, "expected 32 bytes"))?
        }
        // The first start, or one that was cut off before any key could be used.
        None => {
            for path in &paths {
                let length = path.metadata().map_or(0, |metadata| metadata.len());
                if slot::count(length as usize) > 0 {
                    return Err(LeaseError::Corrupt(secret_path, "the file is missing"));
                }
            }
            first_start(directory, &paths).map_err(io(directory))?
        }
    };
    let secret = Zeroizing::new(secret);
    for path in &paths {
        if !path.exists() {
            return Err(LeaseError::Corrupt(path.clone(), "the file is missing"));
        }
    }
    let [leases, witness] = paths;
    let mut files = Files::open([leases.clone(), witness]).map_err(io(&leases))?;
    let mut header = files.read(Area::Leases).map_err(io(&leases))?;
    header.truncate(BLOCK);
    let identity = identity(&files.open[0]).map_err(io(&leases))?;
    identity.check(&secret, &header).map_err(|what| LeaseError::Corrupt(leases, what))?;
    Ok(Directory { secret, files, lock })
}

/// Empty files, and the secret last: it says that the others are there.
fn first_start(directory: &Path, paths: &[PathBuf; 2]) -> io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
    let [leases, witness] = paths;
    let file = private(leases, true)?;
    file.write_all_at(&identity(&file)?.write(&secret), 0)?;
    file.sync_all()?;
    private(witness, true)?.sync_all()?;
    let temporary = directory.join(format!("{SECRET_FILE}.new"));
    let mut file = private(&temporary, true)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(SECRET_FILE))?;
    File::open(directory)?.sync_all()?;
    Ok(secret)
}

/// Refuses a directory whose files others could replace: an old file put back is a repeated nonce.
fn only_ours(directory: &Path) -> Result<(), LeaseError> {
    let metadata =
        std::fs::metadata(directory).map_err(|error| LeaseError::Io(directory.to_owned(), error))?;
    let refused = |what| Err(LeaseError::Unsafe(directory.to_owned(), what));
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

fn identity(file: &File) -> io::Result<Identity> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::BTIME)?;
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    Ok(Identity {
        inode: stat.stx_ino,
        born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        machine: Sha256::digest(machine)[..16].try_into().expect("sixteen bytes"),
    })
}

/// The two files of a book.
pub(super) struct Files {
    paths: [PathBuf; 2],
    open: [File; 2],
}

impl Files {
    fn open(paths: [PathBuf; 2]) -> io::Result<Self> {
        let open = [private(&paths[0], false)?, private(&paths[1], false)?];
        Ok(Self { paths, open })
    }
}

impl Storage for Files {
    fn read(&mut self, area: Area) -> io::Result<Vec<u8>> {
        std::fs::read(&self.paths[area as usize])
    }

    fn write(&mut self, area: Area, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.open[area as usize].write_all_at(bytes, offset)
    }

    fn sync(&mut self, area: Area) -> io::Result<()> {
        let synced = self.open[area as usize].sync_data();
        if synced.is_err()
            // The kernel tells each open file of an error once: the next answer must be about the next write.
            && let Ok(file) = private(&self.paths[area as usize], false)
        {
            self.open[area as usize] = file;
        }
        synced
    }
}
