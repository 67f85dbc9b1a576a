//! The route mirror against a real kernel, in network namespaces of its own. Needs root and iproute2.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adit_engine::route::mirror::{LinkChange, LinkEvent, Mirror};
use adit_engine::route::{Network, NextHop, Port, PortId, Side};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const INSIDE: PortId = PortId(0);
const OUTSIDE: PortId = PortId(1);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network namespace, deleted with everything in it when dropped.
struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("adit-rt-{}-{count}-{role}", std::process::id());
        run(&format!("ip netns add {name}"));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        // Without a packet the kernel solicits IPv6 neighbours from its link-local address, and is silent while
        // that is still being checked for duplicates.
        namespace.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap());
        namespace
    }

    /// Runs `ip` in it.
    fn ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.0));
    }

    /// Runs `work` on a thread in it.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.0)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// A gateway with two ports, each with a host behind it, and a mirror of the gateway's tables.
struct Scene {
    mirror: Mirror,
    latest: Arc<Mutex<Option<Arc<Network>>>>,
    events: Arc<Mutex<Vec<LinkEvent>>>,
    gateway: Namespace,
    host: Namespace,
}

impl Scene {
    fn new() -> Self {
        let (gateway, host) = (Namespace::new("gw"), Namespace::new("host"));
        for port in ["inside", "outside"] {
            gateway.ip(&format!("link add {port} type veth peer name {port} netns {}", host.0));
        }
        let (latest, events) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(Vec::new())));
        let (publish, record) = (latest.clone(), events.clone());
        let mirror = gateway.inside(|| {
            Mirror::start(
                vec![
                    Port::absent("inside".into(), Side::Protected),
                    Port::absent("outside".into(), Side::Unprotected),
                ],
                move |network| *publish.lock().unwrap() = Some(network),
                move |event| record.lock().unwrap().push(event),
            )
        });
        Self { mirror: mirror.unwrap(), latest, events, gateway, host }
    }

    /// Addresses on both ends, everything up.
    fn up(self) -> Self {
        for (namespace, last) in [(&self.gateway, 1), (&self.host, 2)] {
            namespace.ip(&format!("addr add 192.168.7.{last}/24 dev inside"));
            namespace.ip(&format!("addr add 203.0.113.{last}/24 dev outside"));
            namespace.ip(&format!("addr add 2001:db8:7::{last}/64 dev inside nodad"));
            namespace.ip("link set inside up");
            namespace.ip("link set outside up");
        }
        self.wait("both ports up", |network| network.ports.iter().all(|port| port.up));
        self
    }

    fn network(&self) -> Arc<Network> {
        self.latest.lock().unwrap().clone().unwrap()
    }

    /// Waits up to three seconds for a picture of which `condition` is true.
    fn wait(&self, what: &str, condition: impl Fn(&Network) -> bool) -> Arc<Network> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            let network = self.network();
            if condition(&network) {
                return network;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("not within three seconds: {what}; ports {:?}", self.network().ports);
    }

    fn wait_hop(&self, destination: &str, expected: NextHop) {
        self.wait(&format!("{destination} -> {expected:?}"), |network| {
            network.next_hop(ip(destination)) == expected
        });
    }

    /// Takes the events of `port` that were told, waiting for `count` of them.
    fn take_events(&self, port: PortId, count: usize) -> Vec<LinkChange> {
        let start = Instant::now();
        loop {
            let mut events = self.events.lock().unwrap();
            let of_port: Vec<_> =
                events.iter().filter(|event| event.port == port).map(|event| event.change).collect();
            if of_port.len() >= count || start.elapsed() > Duration::from_secs(3) {
                events.retain(|event| event.port != port);
                return of_port;
            }
            drop(events);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn via(port: PortId, neighbour: &str) -> NextHop {
    NextHop::Port { port, neighbour: ip(neighbour) }
}

#[test]
fn the_first_picture_is_complete() {
    let (gateway, host) = (Namespace::new("gw"), Namespace::new("host"));
    gateway.ip(&format!(
        "link add inside mtu 1400 address 02:00:00:00:00:aa type veth peer name inside netns {}",
        host.0
    ));
    host.ip("link set inside up");
    gateway.ip("addr add 192.168.7.1/24 dev inside");
    gateway.ip("link set inside up");
    gateway.ip("route add 10.0.0.0/8 via 192.168.7.2");
    gateway.ip("neigh add 192.168.7.2 lladdr 02:00:00:00:00:02 dev inside nud permanent");

    let (latest, ports) = (
        Arc::new(Mutex::new(None)),
        ["inside", "absent"].map(|name| Port::absent(name.into(), Side::Protected)),
    );
    let publish = latest.clone();
    let mirror = gateway.inside(|| {
        Mirror::start(ports.to_vec(), move |network| *publish.lock().unwrap() = Some(network), |_| {})
            .unwrap()
    });
    let network: Arc<Network> = latest.lock().unwrap().clone().expect("start waits for a picture");
    drop(mirror);

    let port = &network.ports[0];
    assert_ne!(port.ifindex, 0);
    assert_eq!((port.mac.0, port.mtu, port.up), ([2, 0, 0, 0, 0, 0xaa], 1400, true));
    assert!(port.addresses.contains(&ip("192.168.7.1")));
    assert_eq!((network.ports[1].ifindex, network.ports[1].up), (0, false));
    assert_eq!(network.next_hop(ip("10.1.2.3")), via(INSIDE, "192.168.7.2"));
    assert_eq!(network.next_hop(ip("192.168.7.9")), via(INSIDE, "192.168.7.9"));
    assert_eq!(network.next_hop(ip("192.168.7.255")), NextHop::Unreachable, "subnet broadcast");
    assert_eq!(network.next_hop(ip("127.0.0.9")), NextHop::Local);
    assert!(network.is_local(ip("192.168.7.1")) && network.is_local(ip("::1")));
    assert_eq!(network.neighbour(INSIDE, ip("192.168.7.2")).map(|mac| mac.0), Some([2, 0, 0, 0, 0, 2]));
}

#[test]
fn routes_are_followed() {
    let scene = Scene::new().up();
    let gateway = &scene.gateway;
    scene.wait_hop("192.168.7.1", NextHop::Local);
    scene.wait_hop("2001:db8:7::1", NextHop::Local);
    scene.wait_hop("2001:db8:7::9", via(INSIDE, "2001:db8:7::9"));
    scene.wait_hop("10.1.1.1", NextHop::Unreachable);

    gateway.ip("route add default via 203.0.113.2");
    scene.wait_hop("10.1.1.1", via(OUTSIDE, "203.0.113.2"));
    gateway.ip("route add 10.1.0.0/16 via 192.168.7.2 metric 50");
    scene.wait_hop("10.1.1.1", via(INSIDE, "192.168.7.2"));
    // The lower metric wins, and the higher comes back when it goes.
    gateway.ip("route add 10.1.0.0/16 via 192.168.7.3 metric 20");
    scene.wait_hop("10.1.1.1", via(INSIDE, "192.168.7.3"));
    gateway.ip("route replace 10.1.0.0/16 via 192.168.7.4 metric 20");
    scene.wait_hop("10.1.1.1", via(INSIDE, "192.168.7.4"));
    gateway.ip("route del 10.1.0.0/16 metric 20");
    scene.wait_hop("10.1.1.1", via(INSIDE, "192.168.7.2"));
    gateway.ip("route add blackhole 10.1.1.0/24");
    scene.wait_hop("10.1.1.1", NextHop::Unreachable);
    scene.wait_hop("10.1.2.1", via(INSIDE, "192.168.7.2"));
    gateway.ip("route add 10.2.0.0/16 via inet6 2001:db8:7::2 dev inside");
    scene.wait_hop("10.2.1.1", via(INSIDE, "2001:db8:7::2"));
    gateway.ip("-6 route add 2001:db8:9::/48 via 2001:db8:7::2");
    scene.wait_hop("2001:db8:9::1", via(INSIDE, "2001:db8:7::2"));
    gateway.ip("-6 route add unreachable 2001:db8:9:9::/64");
    scene.wait_hop("2001:db8:9:9::1", NextHop::Unreachable);
    gateway.ip("route add 10.3.0.0/16 nexthop via 203.0.113.5 nexthop via 192.168.7.5");
    scene.wait_hop("10.3.1.1", via(OUTSIDE, "203.0.113.5"));
    // The wire of the first hop is cut: the second takes over.
    scene.host.ip("link set outside down");
    scene.wait_hop("10.3.1.1", via(INSIDE, "192.168.7.5"));

    // Other tables do not count; interfaces that are not steered do.
    gateway.ip("route add 10.4.0.0/16 via 192.168.7.2 table 100");
    gateway.ip("link add dummy0 type veth peer name dummy1");
    gateway.ip("link set dummy0 up");
    gateway.ip("route add 10.5.0.0/16 dev dummy0");
    scene.wait_hop("10.5.1.1", NextHop::OtherInterface);
    assert_eq!(scene.network().next_hop(ip("10.4.1.1")), via(OUTSIDE, "203.0.113.2"));

    // A deleted address takes its subnet's routes with it; the kernel tells only of the address.
    gateway.ip("addr del 192.168.7.1/24 dev inside");
    scene.wait("the address gone", |network| !network.is_local(ip("192.168.7.1")));
    scene.wait_hop("10.1.2.1", via(OUTSIDE, "203.0.113.2"));
}

/// More route events at once than a socket buffer holds: whatever is lost, the picture ends right.
#[test]
fn a_flood_of_routes_ends_in_the_right_picture() {
    let scene = Scene::new().up();
    let batch = |verb: &str| {
        let lines =
            (0..20_000).map(|n| format!("route {verb} 10.{}.{}.0/24 via 192.168.7.2\n", n / 256, n % 256));
        let path = std::env::temp_dir().join(format!("adit-rt-{}-{verb}", std::process::id()));
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        scene.gateway.ip(&format!("-batch {}", path.display()));
        std::fs::remove_file(path).unwrap();
    };
    batch("add");
    scene.wait_hop("10.78.31.1", via(INSIDE, "192.168.7.2"));
    let network = scene.network();
    for n in 0..20_000u32 {
        let destination = IpAddr::from([10, (n / 256) as u8, (n % 256) as u8, 1]);
        assert_eq!(network.next_hop(destination), via(INSIDE, "192.168.7.2"), "{destination}");
    }
    assert_eq!(network.next_hop(ip("10.78.32.1")), NextHop::Unreachable);
    // Neighbours are not kept waiting by the routes.
    scene.mirror.resolver().resolve(INSIDE, ip("192.168.7.2"));
    scene.wait("the neighbour", |network| network.neighbour(INSIDE, ip("192.168.7.2")).is_some());
    batch("del");
    scene.wait_hop("10.78.31.1", NextHop::Unreachable);
    let network = scene.network();
    assert!((0..20_000u32).all(|n| {
        network.next_hop(IpAddr::from([10, (n / 256) as u8, (n % 256) as u8, 1])) == NextHop::Unreachable
    }));
}

#[test]
fn neighbours_resolve_on_request_and_fail_when_gone() {
    let scene = Scene::new().up();
    for address in ["192.168.7.2", "2001:db8:7::2"] {
        assert_eq!(scene.network().neighbour(INSIDE, ip(address)), None);
        let asked = Instant::now();
        assert!(scene.mirror.resolver().resolve(INSIDE, ip(address)));
        let network = scene.wait(address, |network| network.neighbour(INSIDE, ip(address)).is_some());
        assert!(asked.elapsed() < Duration::from_secs(1), "{address}: {:?}", asked.elapsed());
        let mac = Some(host_mac(&scene.host, "inside"));
        assert_eq!(network.neighbour(INSIDE, ip(address)).map(|mac| mac.0), mac);
        assert_eq!(network.neighbour(OUTSIDE, ip(address)), None);
    }

    // The neighbour changes its link-layer address and says so; then it is deleted.
    scene.gateway.ip("neigh replace 192.168.7.2 lladdr 02:00:00:00:00:99 dev inside nud stale");
    scene.wait("the new link-layer address", |network| {
        network.neighbour(INSIDE, ip("192.168.7.2")).is_some_and(|mac| mac.0 == [2, 0, 0, 0, 0, 0x99])
    });
    scene.gateway.ip("neigh del 192.168.7.2 dev inside");
    scene.wait("no neighbour", |network| network.neighbour(INSIDE, ip("192.168.7.2")).is_none());

    // A next hop in use that failed is asked for again without any packet from the kernel.
    scene.gateway.ip("neigh replace 192.168.7.2 lladdr 02:00:00:00:00:99 dev inside nud failed");
    assert!(scene.mirror.resolver().in_use(INSIDE, ip("192.168.7.2")));
    scene.wait("resolved by use", |network| {
        network.neighbour(INSIDE, ip("192.168.7.2")).map(|mac| mac.0) == Some(host_mac(&scene.host, "inside"))
    });
}

fn host_mac(host: &Namespace, interface: &str) -> [u8; 6] {
    let output = Command::new("ip").args(["-n", &host.0, "-o", "link", "show", interface]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    let mut bytes = words.nth(1).unwrap().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap());
    std::array::from_fn(|_| bytes.next().unwrap())
}

#[test]
fn links_are_followed_by_name() {
    let scene = Scene::new().up();
    scene.take_events(OUTSIDE, 1);
    scene.gateway.ip("route add default via 203.0.113.2");
    scene.wait_hop("10.1.1.1", via(OUTSIDE, "203.0.113.2"));
    let before = scene.network().ports[1].clone();

    scene.gateway.ip("link set outside mtu 1280");
    scene.wait("the MTU", |network| network.ports[1].mtu == 1280);

    // The wire is cut at the other end, and mended: carrier, not administration.
    scene.host.ip("link set outside down");
    scene.wait("no carrier", |network| !network.ports[1].up);
    scene.host.ip("link set outside up");
    scene.wait("carrier", |network| network.ports[1].up);
    assert_eq!(scene.take_events(OUTSIDE, 2), [LinkChange::Down, LinkChange::Up]);

    // Taken down here: IPv4 routes vanish without a word from the kernel.
    scene.gateway.ip("link set outside down");
    scene.wait_hop("10.1.1.1", NextHop::Unreachable);
    assert_eq!(scene.take_events(OUTSIDE, 1), [LinkChange::Down]);

    scene.gateway.ip("link delete outside");
    let network = scene.wait("no interface", |network| network.ports[1].ifindex == 0);
    assert_eq!((network.ports[1].up, network.ports[1].addresses.len()), (false, 0));
    assert!(!network.is_local(ip("203.0.113.1")));
    assert_eq!(scene.take_events(OUTSIDE, 1), [LinkChange::Gone]);

    scene.gateway.ip(&format!("link add outside type veth peer name outside netns {}", scene.host.0));
    scene.host.ip("link set outside up");
    scene.gateway.ip("link set outside up");
    let after = scene.wait("a new interface", |network| network.ports[1].up).ports[1].clone();
    assert_ne!(after.ifindex, before.ifindex);
    assert_ne!(after.mac, before.mac);
    assert_eq!(
        scene.take_events(OUTSIDE, 2),
        [LinkChange::Appeared { ifindex: after.ifindex }, LinkChange::Up]
    );
    assert!(
        scene
            .events
            .lock()
            .unwrap()
            .iter()
            .all(|event| event.port == OUTSIDE || event.change == LinkChange::Up)
    );
}
