//! An AF_XDP traffic generator and sink, and two forwarders to compare the gateway with. None of it but
//! [`rewrite`] uses adit's own input and output, so a fault there cannot hide in its own measurement.

pub mod forward;
pub mod frame;
pub mod generate;
pub mod rewrite;
pub mod rings;
pub mod sink;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// True after SIGINT or SIGTERM; every loop of the equipment then ends and reports.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Makes SIGINT and SIGTERM end the loops.
pub fn end_on_signals() {
    #![allow(unsafe_code)]
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler = note as extern "C" fn(libc::c_int);
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// CPU time this process used, system calls and the softirq work inside them included.
pub fn cpu_time() -> Duration {
    #![allow(unsafe_code)]
    // SAFETY: an rusage of zeros is valid, and getrusage writes one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1_000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Pins the calling thread.
pub fn pin(core: Option<usize>) {
    if let Some(id) = core
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        eprintln!("CPU {id}: not pinned");
    }
}
