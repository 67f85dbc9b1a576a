//! The state directory, on the file system.

use std::os::unix::fs::{FileExt as _, PermissionsExt};

use super::*;
use crate::crypto::{Authentication, Encryption};

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("adit-leases-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self) -> Result<Leases, LeaseError> {
        Leases::open(&self.0)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn outbound() -> Purpose {
    Purpose::new(Direction::Outbound, Suite::new(Encryption::Aes128Gcm, Authentication::None, None).unwrap())
}

/// A lease of key `id`, granted.
fn granted(leases: &Leases, id: u8) -> Arc<Lease> {
    let lease = leases.begin(&[id; 16]);
    let grant = Grant { id: [id; 16], purpose: outbound(), lease: Some(lease.clone()), limit: u64::MAX };
    leases.grant(&[grant]).unwrap();
    lease
}

#[test]
fn a_key_goes_on_above_its_ceiling_after_a_crash_and_where_it_was_after_an_end() {
    let directory = Directory::new("restart");
    let leases = directory.open().unwrap();
    let secret = *leases.host_secret();
    assert_eq!(leases.known(&[1; 16]), None);
    let first = granted(&leases, 1);
    assert!(first.reached() == 0 && first.ceiling() >= 1 << 16);
    drop(leases);
    let leases = directory.open().unwrap();
    assert_eq!(*leases.host_secret(), secret);
    let second = granted(&leases, 1);
    assert_eq!(second.reached(), first.ceiling());
    second.reach(second.reached() + 5);
    leases.release().unwrap();
    drop(leases);
    let known = directory.open().unwrap().known(&[1; 16]);
    assert_eq!(known, Some(Known::Record { purpose: outbound(), ceiling: first.ceiling() + 5 }));
}

#[test]
fn the_keeper_comes_when_it_is_rung_for() {
    let directory = Directory::new("keeper");
    let leases = Arc::new(directory.open().unwrap());
    let keeper = Keeper::start(leases.clone()).unwrap();
    let lease = granted(&leases, 1);
    let ceiling = lease.ceiling();
    lease.reach(ceiling);
    let asked = Instant::now();
    while lease.ceiling() == ceiling {
        assert!(asked.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(leases.trouble(), None);
    drop(keeper);
}

#[test]
fn a_second_daemon_is_refused() {
    let directory = Directory::new("lock");
    let leases = directory.open().unwrap();
    assert!(matches!(directory.open(), Err(LeaseError::Locked(_))));
    drop(leases);
    assert!(directory.open().is_ok());
}

#[test]
fn a_file_that_is_missing_damaged_or_a_copy_refuses_the_start() {
    let directory = Directory::new("damage");
    drop(granted(&directory.open().unwrap(), 7));
    let refused = |what: &str| {
        let error = directory.open().err().unwrap_or_else(|| panic!("{what}: opened")).to_string();
        assert!(error.contains("nothing is sent"), "{what}: {error}");
        error
    };
    for name in ["host-secret", "leases", "leases.witness"] {
        let (path, aside) = (directory.file(name), directory.file("aside"));
        std::fs::rename(&path, &aside).unwrap();
        refused(name);
        std::fs::rename(&aside, &path).unwrap();
    }
    let path = directory.file("leases");
    let (good, file) =
        (std::fs::read(&path).unwrap(), std::fs::File::options().write(true).open(&path).unwrap());
    for byte in [0, 8, 20, 40, 2000, slot::BLOCK - 1] {
        file.write_all_at(&[good[byte] ^ 1], byte as u64).unwrap();
        refused("header");
        file.write_all_at(&good[byte..=byte], byte as u64).unwrap();
    }
    let secret = std::fs::read(directory.file("host-secret")).unwrap();
    for other in [vec![0; 32], vec![0; 5]] {
        std::fs::write(directory.file("host-secret"), other).unwrap();
        refused("another host's secret");
    }
    std::fs::write(directory.file("host-secret"), secret).unwrap();
    assert!(directory.open().is_ok());
    // A backup that is put back is another file, and the whole directory too.
    std::fs::copy(&path, directory.file("backup")).unwrap();
    std::fs::rename(directory.file("backup"), &path).unwrap();
    assert!(refused("a copy").contains("a copy"));
}

#[test]
fn an_old_file_written_over_the_new_one_costs_its_keys() {
    let directory = Directory::new("old");
    let leases = directory.open().unwrap();
    granted(&leases, 7);
    let old = std::fs::read(directory.file("leases")).unwrap();
    granted(&leases, 7);
    granted(&leases, 8);
    drop(leases);
    let file = std::fs::File::options().write(true).open(directory.file("leases")).unwrap();
    file.write_all_at(&old, 0).unwrap();
    let leases = directory.open().unwrap();
    assert_eq!(leases.known(&[7; 16]), Some(Known::Lost));
    assert!(matches!(leases.known(&[8; 16]), Some(Known::Record { .. })));
}

#[test]
fn a_first_start_cut_off_is_taken_up_again() {
    let directory = Directory::new("first");
    drop(directory.open().unwrap());
    std::fs::remove_file(directory.file("host-secret")).unwrap();
    assert!(directory.open().is_ok(), "no key was recorded yet");
}

#[test]
fn a_directory_that_others_could_write_is_refused() {
    let directory = Directory::new("writable");
    drop(directory.open().unwrap());
    let set = |mode| std::fs::set_permissions(&directory.0, PermissionsExt::from_mode(mode)).unwrap();
    for mode in [0o720, 0o702, 0o1777] {
        set(mode);
        let error = directory.open().err().expect("others could write").to_string();
        assert!(error.contains(&format!("found mode {mode:04o}")), "{error}");
    }
    for mode in [0o700, 0o755] {
        set(mode);
        assert!(directory.open().is_ok());
    }
    // Only root can give a directory away.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&directory.0, Some(12_345), None).unwrap();
        let error = directory.open().err().expect("another's").to_string();
        assert!(error.contains("found one of uid 12345"), "{error}");
    }
}

#[test]
fn the_files_are_private() {
    let directory = Directory::new("mode");
    let leases = directory.open().unwrap();
    granted(&leases, 7);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory.0), 0o700);
    for name in ["host-secret", "leases", "leases.witness", "lock"] {
        assert_eq!(mode(&directory.file(name)), 0o600, "{name}");
    }
}
