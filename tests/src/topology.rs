//! Two gateways between two hosts (drawn in `scripts/topology`), in namespaces of this test's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{repository, run};

static MADE: AtomicU32 = AtomicU32::new(0);

/// Namespaces, a bpffs and a directory for sockets and logs; all of it goes when this does.
pub struct Topology {
    prefix: String,
    directory: PathBuf,
}

impl Topology {
    /// Makes the namespaces, with `queues` queues on every link.
    pub fn new(queues: u32) -> Self {
        assert!(rustix::process::geteuid().is_root(), "namespace tests need root: run scripts/test");
        // Short: a gateway's instance is named after it, and the gateway's host device after that.
        let prefix = format!("ad{:x}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let directory = PathBuf::from(format!("/run/{prefix}"));
        std::fs::create_dir_all(directory.join("bpf")).expect("/run is writable");
        let this = Self { prefix, directory };
        run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(this.directory.join("bpf")));
        this.script("up", &[&queues.to_string()]);
        this
    }

    /// Gives every link and the wire's bridge another MTU.
    pub fn set_mtu(&self, mtu: u32) {
        self.set_mtus(mtu, mtu);
    }

    /// The same for what is between the gateways, and for the links to their hosts.
    pub fn set_mtus(&self, outside: u32, inside: u32) {
        let wire = [("ga", "out0"), ("wire", "left"), ("wire", "right"), ("wire", "br"), ("gb", "out0")];
        let links = [("ha", "eth0"), ("ga", "in0"), ("gb", "in0"), ("hb", "eth0")];
        let all =
            wire.map(|device| (device, outside)).into_iter().chain(links.map(|device| (device, inside)));
        for ((name, device), mtu) in all {
            self.inside(name, &format!("ip link set dev {device} mtu {mtu}"));
        }
    }

    /// Puts a router in the wire's place, with a link of `mtu` bytes to gateway B, which is at 198.51.100.2 and
    /// 2001:db8:e::2 then. The router answers each packet that it cannot forward, however many there are.
    pub fn put_a_router(&self, mtu: u32) {
        for line in [
            "ip link delete dev br",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0",
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.all.forwarding=1",
            "ip address add 192.0.2.254/24 dev left",
            "ip address add 2001:db8:f::fe/64 dev left nodad",
            "ip address add 198.51.100.254/24 dev right",
            "ip address add 2001:db8:e::fe/64 dev right nodad",
        ] {
            self.inside("wire", line);
        }
        for line in [
            "ip address delete 192.0.2.2/24 dev out0",
            "ip address delete 2001:db8:f::2/64 dev out0",
            "ip address add 198.51.100.2/24 dev out0",
            "ip address add 2001:db8:e::2/64 dev out0 nodad",
        ] {
            self.inside("gb", line);
        }
        for (gateway, link4, link6) in [("ga", "192.0.2", "2001:db8:f"), ("gb", "198.51.100", "2001:db8:e")] {
            self.inside(gateway, &format!("ip route replace default via {link4}.254"));
            self.inside(gateway, &format!("ip -6 route replace default via {link6}::fe"));
        }
        for (name, device) in [("wire", "right"), ("gb", "out0")] {
            self.inside(name, &format!("ip link set dev {device} mtu {mtu}"));
        }
    }

    fn script(&self, verb: &str, more: &[&str]) {
        run(Command::new(repository().join("scripts/topology")).arg(verb).arg(&self.prefix).args(more));
    }

    /// Where sockets, logs, captures and the bpffs are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Full name of a namespace: `ha`, `ga`, `wire`, `gb` or `hb`.
    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A command that will run inside a namespace.
    pub fn command(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(name)]).arg(program);
        command
    }

    /// Runs a command line, split at blanks, inside a namespace; it must succeed.
    pub fn inside(&self, name: &str, line: &str) -> Output {
        let mut words = line.split_whitespace();
        run(self.command(name, words.next().expect("a command")).args(words))
    }

    /// The same, whatever it comes to.
    pub fn attempt(&self, name: &str, line: &str) -> Output {
        let mut words = line.split_whitespace();
        self.command(name, words.next().expect("a command")).args(words).output().expect("ip netns exec runs")
    }
}

/// Frames that a link's own queues lost: on a machine too busy to serve them, the kernel drops and counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkLoss {
    /// On arrival: nobody took them.
    pub receive: u64,
    /// On departure: the other end was full.
    pub transmit: u64,
}

impl Topology {
    /// What the kernel lost at a device.
    pub fn loss(&self, name: &str, device: &str) -> LinkLoss {
        let output = self.inside(name, &format!("ip -s -j link show dev {device}"));
        let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("ip speaks JSON");
        let dropped = |way: &str| links[0]["stats64"][way]["dropped"].as_u64().expect("ip counts drops");
        LinkLoss { receive: dropped("rx"), transmit: dropped("tx") }
    }

    /// What the kernel lost at all devices.
    pub fn loss_everywhere(&self) -> u64 {
        let devices = [("ha", "eth0"), ("ga", "in0"), ("ga", "out0"), ("wire", "left"), ("wire", "right")];
        let devices = devices.into_iter().chain([("gb", "out0"), ("gb", "in0"), ("hb", "eth0")]);
        devices.map(|(name, device)| self.loss(name, device)).map(|loss| loss.receive + loss.transmit).sum()
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        let _ = Command::new(repository().join("scripts/topology")).args(["down", &self.prefix]).output();
        let _ = Command::new("umount").arg(self.directory.join("bpf")).output();
        if std::thread::panicking() {
            eprintln!("logs are kept in {}", self.directory.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}
