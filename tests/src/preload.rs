//! Faults that a daemon meets in its C library: one function of it replaced, for one process (LD_PRELOAD). Nothing of
//! the daemon itself is made for the test.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;

/// A library made of `code`, in which `FILE` is `file`.
fn library(directory: &Path, name: &str, file: &Path, code: &str) -> PathBuf {
    let (source, library) = (directory.join(format!("{name}.c")), directory.join(format!("{name}.so")));
    std::fs::write(&source, code).expect("a directory of the test's own");
    let file = format!("-DFILE_NAME=\"{}\"", file.display());
    run(Command::new("cc").args(["-shared", "-fPIC", &file, "-o"]).arg(&library).arg(&source));
    library
}

/// The kernel gives no random bytes: getrandom(2) answers with an error. Seeds of hash maps, which ask for bytes of any
/// kind (GRND_INSECURE), are given.
pub fn without_random_bytes(directory: &Path) -> PathBuf {
    let code = r#"
        #include <errno.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        ssize_t getrandom(void *buffer, size_t length, unsigned flags) {
            if (flags == 0) { errno = EIO; return -1; }
            return syscall(SYS_getrandom, buffer, length, flags);
        }
    "#;
    library(directory, "blind", Path::new(""), code)
}

/// A disk that does not answer: fdatasync(2) does not return while `stalled` is there.
pub fn stalling(directory: &Path, stalled: &Path) -> PathBuf {
    let code = r#"
        #include <sys/syscall.h>
        #include <unistd.h>
        int fdatasync(int fd) {
            while (access(FILE_NAME, F_OK) == 0) usleep(10000);
            return syscall(SYS_fdatasync, fd);
        }
    "#;
    library(directory, "stalling", stalled, code)
}

/// A wall clock that is wrong by as many seconds as `step` says; no other clock is.
pub fn stepped(directory: &Path, step: &Path) -> PathBuf {
    let code = r#"
        #include <stdio.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t clock, struct timespec *now) {
            int result = syscall(SYS_clock_gettime, clock, now);
            FILE *file = result == 0 && clock == CLOCK_REALTIME ? fopen(FILE_NAME, "r") : NULL;
            if (file) {
                long seconds = 0;
                if (fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds;
                fclose(file);
            }
            return result;
        }
    "#;
    library(directory, "stepped", step, code)
}
