//! Namespaces, a bpffs and interfaces of one test's own, gone when it is.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use adit_engine::io::steering::{Hook, Outcome, PortSpec, Steering, SteeringConfig, Verdict};
use adit_engine::route::Side;
use adit_engine::wire::vlan::Tags;
use adit_tests::process::run;

static MADE: AtomicU32 = AtomicU32::new(0);

/// Namespaces that end with this.
pub struct Sandbox {
    prefix: String,
    namespaces: Vec<String>,
    directory: PathBuf,
}

impl Sandbox {
    pub fn new(namespaces: &[&str]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "namespace tests need root: run scripts/test");
        let prefix = format!("adst{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let directory = PathBuf::from(format!("/run/{prefix}"));
        std::fs::create_dir_all(directory.join("bpf")).expect("/run is writable");
        let mut this = Self { prefix, namespaces: Vec::new(), directory };
        run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(this.bpffs()));
        for name in namespaces {
            this.namespaces.push((*name).to_string());
            run(Command::new("ip").args(["netns", "add", &this.namespace(name)]));
            this.ip(name, "link set lo up");
        }
        this
    }

    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Runs `ip ARGUMENTS` in a namespace.
    pub fn ip(&self, name: &str, arguments: &str) {
        // `%NAME` stands for a namespace's full name.
        let arguments = arguments.replace('%', &format!("{}-", self.prefix));
        run(Command::new("ip").args(["-n", &self.namespace(name)]).args(arguments.split_whitespace()));
    }

    /// Runs `work` in a thread that lives in a namespace; sockets and links made there stay there.
    pub fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace =
            std::fs::File::open(format!("/run/netns/{}", self.namespace(name))).expect("it was made");
        let worker = move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("root may");
            work()
        };
        std::thread::scope(|scope| match scope.spawn(worker).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    pub fn ifindex(&self, name: &str, interface: &str) -> u32 {
        let arguments = ["-n", &self.namespace(name), "-o", "link", "show", "dev", interface];
        let output = run(Command::new("ip").args(arguments));
        let text = String::from_utf8(output.stdout).expect("ip speaks UTF-8");
        text.split(':').next().and_then(|index| index.trim().parse().ok()).expect("ip prints the index first")
    }

    pub fn config(&self) -> SteeringConfig {
        SteeringConfig { bpffs: self.bpffs(), instance: "test".into(), force: false }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(name)]).output();
        }
        let _ = Command::new("umount").arg(self.bpffs()).output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Both programs, loaded for one interface of each side, attached to nothing.
pub struct Programs {
    pub steering: Steering,
    pub inside: u32,
    pub outside: u32,
    /// An AF_XDP socket with a fill ring: all that a map of sockets asks for.
    socket: std::os::fd::OwnedFd,
    _sandbox: Sandbox,
}

impl Programs {
    pub fn new() -> Self {
        Self::with_vlans(&[])
    }

    /// Both interfaces have the same VLANs that are ports.
    pub fn with_vlans(vlans: &[(Tags, Side)]) -> Self {
        let sandbox = Sandbox::new(&["g"]);
        sandbox.ip("g", "link add in0 type veth peer name out0");
        let (inside, outside) = (sandbox.ifindex("g", "in0"), sandbox.ifindex("g", "out0"));
        let config = sandbox.config();
        let (steering, socket) = sandbox.inside("g", || {
            let mut steering = Steering::open(&config).unwrap();
            for (name, ifindex, side) in
                [("in0", inside, Side::Protected), ("out0", outside, Side::Unprotected)]
            {
                steering.load(&PortSpec { name: name.into(), ifindex, side, vlans: vlans.to_vec() }).unwrap();
            }
            (steering, xdp_socket())
        });
        Self { steering, inside, outside, socket, _sandbox: sandbox }
    }

    /// From now on there is an engine on queue 0 of both interfaces.
    pub fn listen(&mut self) {
        for ifindex in [self.inside, self.outside] {
            self.steering.insert_socket(ifindex, 0, self.socket.as_fd()).unwrap();
        }
    }

    pub fn hang_up(&mut self) {
        for ifindex in [self.inside, self.outside] {
            self.steering.remove_socket(ifindex, 0).unwrap();
        }
    }

    /// Which interface, and which hook of it.
    pub fn hook(&self, at: Place) -> (u32, Hook) {
        match at {
            Place::FromInside => (self.inside, Hook::Arrival),
            Place::FromOutside => (self.outside, Hook::Arrival),
            Place::ToOutside => (self.outside, Hook::Departure),
            Place::ToInside => (self.inside, Hook::Transit),
            Place::OwnToInside => (self.inside, Hook::Departure),
        }
    }

    /// What becomes of a frame: the verdict, and the one counter that moved, by one.
    pub fn outcome(&self, at: Place, frame: &[u8]) -> (Verdict, Outcome) {
        let (ifindex, hook) = self.hook(at);
        let before = self.steering.counters(ifindex).unwrap();
        let verdict = self.steering.try_frame(ifindex, hook, frame).unwrap();
        let after = self.steering.counters(ifindex).unwrap();
        let moved: Vec<_> =
            before.iter().zip(&after).filter(|(b, a)| b != a).map(|(b, a)| (a.0, a.1 - b.1)).collect();
        assert_eq!(moved.len(), 1, "{at:?}: counters moved: {moved:?}, frame {frame:02x?}");
        assert_eq!(moved[0].1, 1, "{at:?}: {moved:?}");
        (verdict, moved[0].0)
    }
}

/// Where a frame meets a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    FromInside,
    FromOutside,
    /// Sent by the gateway or forwarded: it makes no difference there.
    ToOutside,
    /// Forwarded by the kernel.
    ToInside,
    /// Sent by the gateway itself.
    OwnToInside,
}

/// An AF_XDP socket with a fill ring, not bound to any queue.
pub fn xdp_socket() -> std::os::fd::OwnedFd {
    use rustix::net::{AddressFamily, SocketType, socket, sockopt};
    let fd = socket(AddressFamily::XDP, SocketType::RAW, None).unwrap();
    sockopt::set_xdp_umem_fill_ring_size(&fd, 64).unwrap();
    fd
}
