//! Network namespaces, veth pairs, and raw frames at their ends. Needs root.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// True when namespaces can be made. Says on standard error that the test is not run when they cannot; with
/// `ADIT_REQUIRE_ROOT` set, as in continuous integration, that is a failure.
///
/// # Panics
/// Without root, when `ADIT_REQUIRE_ROOT` is set.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("ADIT_REQUIRE_ROOT").is_none(), "this test needs root");
        eprintln!("not run: needs root");
    }
    root
}

/// A network namespace of its own, deleted with everything in it when dropped.
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes one; its name is unique on this machine.
    ///
    /// # Panics
    /// Without root or iproute2.
    #[expect(clippy::new_without_default, reason = "it has effects")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("adit-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let file = File::open(format!("/run/netns/{name}")).expect("ip made it");
        let namespace = Self { name, file };
        // No router solicitations or multicast reports among the frames that tests count.
        namespace.run("sysctl", &["-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        namespace.run("ip", &["link", "set", "lo", "up"]);
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a program inside.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(arguments);
        run("ip", &all);
    }

    /// Runs `ip` inside, its arguments written as one line.
    ///
    /// # Panics
    /// When it fails.
    pub fn ip(&self, line: &str) {
        let mut all = vec!["-n", &self.name];
        all.extend(line.split_whitespace());
        run("ip", &all);
    }

    /// Runs `work` on a thread inside the namespace; threads it starts stay inside.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("setns");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A veth pair with `queues` queues at both ends, up, without transmit checksum offload.
    ///
    /// # Panics
    /// When a name is taken.
    pub fn veth(&self, a: &str, b: &str, queues: u32) {
        let shape = format!("numtxqueues {queues} numrxqueues {queues}");
        self.ip(&format!("link add {a} {shape} type veth peer name {b} {shape}"));
        for end in [a, b] {
            self.ip(&format!("link set {end} up"));
            self.run("ethtool", &["-K", end, "tx", "off"]);
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
}

/// A raw socket on one interface: sends and receives whole Ethernet frames.
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// Opens it on `interface` of the calling thread's namespace. It does not see what it sends.
    ///
    /// # Errors
    /// No such interface, no privilege.
    pub fn open(interface: &str) -> io::Result<Self> {
        const PACKET_IGNORE_OUTGOING: i32 = 23;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: sockaddr_ll of zeros is valid; the name ends in NUL.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: the name ends in NUL.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        for (level, option, value) in [
            (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 256 << 20),
            (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 64 << 20),
            (libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1),
        ] {
            let value: i32 = value;
            // SAFETY: reads one i32.
            let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), 4) };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: reads one sockaddr_ll.
        if unsafe { libc::bind(fd, (&raw const address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// What the kernel says: ENETDOWN, for example.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: reads `frame`.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame, if one comes in time.
    ///
    /// # Errors
    /// What the kernel says; ENETDOWN, once, after the interface went down.
    pub fn receive(&self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let time = rustix::time::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&time))? == 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 16 << 10];
        // SAFETY: writes at most the vector's length.
        let length =
            unsafe { libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        frame.truncate(length as usize);
        Ok(Some(frame))
    }

    /// All frames until none has come for `quiet`.
    ///
    /// # Errors
    /// As [`Tap::receive`].
    pub fn drain(&self, quiet: Duration) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.receive(quiet)? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within `limit`.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
