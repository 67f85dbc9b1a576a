//! Child processes that end with the test that started them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

/// A child that is killed, by pid, when it goes out of scope.
pub struct Running(pub Child);

impl Running {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("the child runs");
    }

    /// Waits until the child ends by itself.
    pub fn wait_for_end(&mut self, patience: Duration) -> ExitStatus {
        let mut ended = None;
        eventually("the child ends", patience, || {
            ended = self.0.try_wait().expect("waitpid works");
            ended.is_some()
        });
        ended.expect("it ended")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end; a failure ends the test with what the command said.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Looks again until `condition` holds; ends the test when `patience` is over.
pub fn eventually(what: &str, patience: Duration, condition: impl FnMut() -> bool) {
    assert!(settles(patience, condition), "{what}: not within {patience:?}");
}

/// Looks again until `condition` holds; false when `patience` is over.
pub fn settles(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// The checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests live in the repository").to_path_buf()
}

/// A program of this workspace, built beside the running test.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let path = test.parent().and_then(Path::parent).expect("tests are built in PROFILE/deps").join(name);
    assert!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    path
}
