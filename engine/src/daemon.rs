//! The daemon: the only file that sees both io and control.
//!
//! ```text
//! 1. configuration checked, cryptography self-tested, state directory locked
//! 2. the kernel's routes and neighbours mirrored
//! 3. steering programs loaded, own addresses filled in                    nothing attached yet
//! 4. sockets bound to every queue and inserted; workers run               nothing arrives yet
//!    the host device made, if there is to be one                          nothing is routed into it yet
//! 5. policies and SAs applied: covers and SPIs filled in
//! 6. the hooks switched to the new programs                               from here on packets arrive
//! 7. the control socket opened
//! ```
//!
//! The order is what keeps the start closed: a hook that is switched before its maps are filled leaks.

pub mod log;

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::control::check;
use crate::control::config::XdpMode;
use crate::control::leases::{Keeper, Leases};
use crate::control::report::{Counter, DatapathReport, HostReport, InterfaceReport, WorkerReport};
use crate::control::server::Server;
use crate::control::settings::{Engine, Interface, Settings};
use crate::control::{self, Control};
use crate::crypto::{self, IvSource};
use crate::io::datapath::{PortInterface, Report};
use crate::io::host::{self, Host};
use crate::io::socket::{SocketOptions, XDP_STATISTICS};
use crate::io::steering::{
    AttachMode, AttachedPort, CoverPrefix, PortSpec, Steering, SteeringConfig, SteeringError, SteeringTables,
};
use crate::io::{self as packet_io, DatapathConfig, NeighbourRequests, Online, SocketRegistry};
use crate::pipeline::{DropReason, Identifications, Pipeline, Tables};
use crate::policy::cover::Cover;
use crate::policy::spd::Fallback;
use crate::policy::{Prefix, Spd};
use crate::route::mirror::{LinkChange, LinkEvent, Mirror};
use crate::route::{Network, Port, PortId, Resolver, Side, Vlan};
use crate::sa::publish;
use crate::wire::Spi;
use crate::wire::ethernet::MacAddress;

/// How often a port that could not be opened or attached is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. `force` replaces another's XDP program.
///
/// # Errors
/// A text for the operator, with the next step; hooks of an earlier life stay as they were, closed.
pub fn run(config: &Path, force: bool) -> Result<(), String> {
    harden()?;
    let settings = check::load_file(config, false).map_err(|problems| problems.to_string())?;
    crypto::self_test().map_err(|algorithm| format!("{algorithm} gave a wrong answer in its self-test: this machine's hardware or this build is broken"))?;
    let leases = Leases::open(&settings.engine.state_dir).map_err(|error| error.to_string())?;
    let leases = Arc::new(leases);
    let keeper = Keeper::start(leases.clone()).map_err(|error| format!("a thread: {error}"))?;
    let daemon = Daemon::start(&settings, force)?;
    let control = daemon.control(&settings, leases.clone(), config);
    let change = control.apply(settings).map_err(|problems| problems.to_string())?;
    for warning in &change.warnings {
        tracing::warn!("{warning}");
    }
    daemon.open_hooks()?;
    let engine = &control.engine;
    let server = Server::start(control.clone(), &engine.socket, engine.socket_group.as_deref());
    let server = server.map_err(|error| format!("{}: {error}", engine.socket.display()))?;
    tracing::info!(socket = %control.engine.socket.display(), "ready");
    wait_for_signal()?;
    tracing::info!("ending; the hooks stay, closed, until adit detach or the next start");
    drop(server);
    // What is under way still leaves; nothing more is received.
    daemon.workers.stop();
    drop(keeper);
    // Nobody numbers or accepts any more, so what was not used is free for the next start.
    if let Err(error) = leases.release() {
        tracing::warn!(%error, "the next start begins above the leases, as after a crash");
    }
    Ok(())
}

/// No core dumps, no ptrace by others of the same user: key bytes stay in this process.
fn harden() -> Result<(), String> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map_err(|error| format!("core dumps could not be switched off: {error}"))
}

fn wait_for_signal() -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("signals: {error}"))?;
    runtime
        .block_on(async {
            let (mut terminate, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            io::Result::Ok(())
        })
        .map_err(|error| format!("signals: {error}"))
}

/// A port and what is attached to it.
struct PortHook {
    interface: Interface,
    ifindex: u32,
    attached: Option<AttachedPort>,
}

/// The kernel hooks, shared by the start, control, and the thread that follows links.
struct Hooks {
    state: Mutex<HookState>,
}

struct HookState {
    steering: Steering,
    ports: Vec<PortHook>,
    own_addresses: Vec<IpAddr>,
}

impl Hooks {
    fn lock(&self) -> MutexGuard<'_, HookState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HookState {
    /// The interface `ifindex` that a port has, or is to have, and its VLANs.
    fn spec(&self, port: PortId, ifindex: u32) -> PortSpec {
        let Interface { name, side, .. } = &self.ports[usize::from(port.0)].interface;
        let vlans = self.ports.iter().filter_map(|hook| match hook.interface.vlan {
            Some(Vlan { parent, tags }) if parent == port => Some((tags, hook.interface.side)),
            _ => None,
        });
        PortSpec { name: name.clone(), ifindex, side: *side, vlans: vlans.collect() }
    }

    /// Loads programs for the interface that a port has now.
    fn load(&mut self, port: PortId, ifindex: u32) -> Result<(), SteeringError> {
        let hook = &mut self.ports[usize::from(port.0)];
        let gone = std::mem::replace(&mut hook.ifindex, ifindex);
        hook.attached = None;
        if gone != 0 && gone != ifindex {
            self.steering.forget(gone)?;
        }
        self.steering.load(&self.spec(port, ifindex))
    }

    fn forget(&mut self, port: PortId) {
        let hook = &mut self.ports[usize::from(port.0)];
        let gone = std::mem::take(&mut hook.ifindex);
        hook.attached = None;
        if gone != 0
            && let Err(error) = self.steering.forget(gone)
        {
            tracing::warn!(interface = hook.interface.name, %error, "stale pins");
        }
    }

    /// Whether nobody else steers the interface that a port is to have.
    fn check_free(&self, port: PortId, ifindex: u32) -> Result<(), SteeringError> {
        self.steering.check_free(&self.spec(port, ifindex))
    }

    /// Puts a loaded port's programs to work.
    fn switch(&mut self, port: PortId) -> Result<(), SteeringError> {
        let hook = &mut self.ports[usize::from(port.0)];
        let mode = match hook.interface.mode {
            XdpMode::Auto => AttachMode::Auto,
            XdpMode::Native => AttachMode::Native,
            XdpMode::Skb => AttachMode::Skb,
        };
        let attached = self.steering.switch(hook.ifindex, mode)?;
        tracing::info!(
            interface = hook.interface.name,
            mode = attached.mode.name(),
            taken_over = attached.taken_over,
            native_refused = attached.native_refused.as_deref().unwrap_or("no"),
            "steering"
        );
        hook.attached = Some(attached);
        Ok(())
    }

    fn own_addresses(&mut self, network: &Network) {
        if self.own_addresses == network.own_addresses() {
            return;
        }
        match self.steering.set_own_addresses(network.own_addresses()) {
            Ok(()) => self.own_addresses = network.own_addresses().to_vec(),
            Err(error) => tracing::error!(%error, "own addresses of the steering program"),
        }
    }
}

impl SocketRegistry for Hooks {
    fn insert_socket(&self, port: PortId, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut state = self.lock();
        let ifindex = state.ports[usize::from(port.0)].ifindex;
        state.steering.insert_socket(ifindex, queue, socket).map_err(io::Error::other)
    }

    fn remove_socket(&self, port: PortId, queue: u32) -> io::Result<()> {
        let mut state = self.lock();
        let ifindex = state.ports[usize::from(port.0)].ifindex;
        state.steering.remove_socket(ifindex, queue).map_err(io::Error::other)
    }
}

/// Workers' questions to the mirror.
struct Neighbours {
    resolver: Resolver,
    tables: Arc<Tables>,
}

impl NeighbourRequests for Neighbours {
    fn resolve(&self, port: PortId, neighbour: IpAddr) {
        self.resolver.resolve(port, neighbour);
    }

    fn in_use(&self, port: PortId, mac: MacAddress) {
        if let Some(network) = self.tables.network.get() {
            for address in network.neighbours_with(port, mac) {
                self.resolver.in_use(port, address);
            }
        }
    }
}

/// What runs: hooks, workers, mirror, and the thread that keeps the first two up with the third.
struct Daemon {
    tables: Arc<Tables>,
    hooks: Arc<Hooks>,
    workers: Arc<packet_io::Datapath>,
    host: Option<Arc<Host>>,
    /// Policies or addresses are others now.
    changed: Arc<Notify>,
    cores: Vec<usize>,
    link_events: Mutex<Option<mpsc::Receiver<LinkEvent>>>,
    _mirror: Mirror,
}

impl Daemon {
    /// Steps 2 to 4.
    fn start(settings: &Settings, force: bool) -> Result<Self, String> {
        let engine = &settings.engine;
        let tables = Arc::new(Tables {
            identifications: Identifications::scattered(),
            ..Tables::new(engine.reassembly, engine.icmp)
        });
        tables.spd.replace(Some(Arc::new(Spd::new(Vec::new(), Fallback::Discard, 0))));
        let ports = settings.interfaces.iter().map(|interface| PortHook {
            interface: interface.clone(),
            ifindex: 0,
            attached: None,
        });
        let steering = Steering::open(&SteeringConfig {
            bpffs: engine.bpffs.clone(),
            instance: engine.instance.clone(),
            force,
        });
        let hooks = Arc::new(Hooks {
            state: Mutex::new(HookState {
                steering: steering.map_err(|error| error.to_string())?,
                ports: ports.collect(),
                own_addresses: Vec::new(),
            }),
        });

        let (links, link_events) = mpsc::channel();
        let changed = Arc::new(Notify::new());
        let mirror = {
            let (tables, hooks, changed) = (tables.clone(), hooks.clone(), changed.clone());
            let ports = settings.interfaces.iter().map(|interface| Port {
                vlan: interface.vlan,
                ..Port::absent(interface.name.as_str().into(), interface.side)
            });
            // A VLAN has neither hooks nor sockets of its own.
            let is_vlan: Vec<_> =
                settings.interfaces.iter().map(|interface| interface.vlan.is_some()).collect();
            let publish = move |network: Arc<Network>| {
                // Before packets meet the new picture, the hooks know which addresses are the gateway's own.
                hooks.lock().own_addresses(&network);
                tables.network.replace(Some(network));
                publish::reclaim();
                changed.notify_one();
            };
            let on_link = move |event: LinkEvent| {
                if is_vlan[usize::from(event.port.0)] {
                    return;
                }
                // Nobody listens only when the daemon ends.
                let _ = links.send(event);
            };
            Mirror::start(ports.collect(), publish, on_link)
        };
        let mirror = mirror.map_err(|error| format!("the kernel's routes and neighbours: {error}"))?;

        let network = tables.network.get().ok_or("the kernel's tables came without interfaces")?;
        let (mut sockets, mut vlans) = (Vec::new(), Vec::new());
        for (number, port) in network.ports.iter().enumerate() {
            let id = PortId(number as u16);
            if port.ifindex == 0 {
                return Err(format!(
                    "interface[{number}].name: expected an interface that exists, found {:?}",
                    port.name
                ));
            }
            if let Some(Vlan { parent, tags }) = port.vlan {
                vlans.push(packet_io::VlanPort { port: id, parent, tags });
                continue;
            }
            hooks.lock().check_free(id, port.ifindex).map_err(|error| error.to_string())?;
            sockets.push(PortInterface { port: id, interface: port.name.to_string() });
        }

        // All of them are free: from here on there is something to undo.
        for socket in &sockets {
            let ifindex = network.ports[usize::from(socket.port.0)].ifindex;
            hooks.lock().load(socket.port, ifindex).map_err(|error| error.to_string())?;
        }

        let cores = match &engine.cores {
            Some(cores) => cores.iter().map(|&core| core as usize).collect(),
            None => core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect(),
        };
        let config = DatapathConfig { ports: sockets, vlans, cores, sockets: SocketOptions::default() };
        let neighbours = Arc::new(Neighbours { resolver: mirror.resolver(), tables: tables.clone() });
        // An IV source per worker, before any worker runs: without entropy nothing starts.
        let ivs: Result<Vec<_>, _> =
            config.cores.iter().map(|_| IvSource::from_entropy().map(Some)).collect();
        let ivs = Mutex::new(ivs.map_err(|error| format!("the kernel gives no random bytes: {error}"))?);
        let process = {
            let tables = tables.clone();
            move |worker: u32, counters| {
                let ivs = ivs.lock().unwrap_or_else(PoisonError::into_inner)[worker as usize].take();
                let ivs = ivs.expect("each worker takes its IV source once");
                Online::new(Pipeline::new(worker, counters, ivs), tables.clone())
            }
        };
        let workers = packet_io::Datapath::start(&config, process, hooks.clone(), neighbours);
        let workers = Arc::new(workers.map_err(|error| error.to_string())?);
        let host = host_path(engine, &tables, &workers, &changed)?.map(Arc::new);
        let link_events = Mutex::new(Some(link_events));
        Ok(Self { tables, hooks, workers, host, changed, cores: config.cores, link_events, _mirror: mirror })
    }

    fn control(&self, settings: &Settings, leases: Arc<Leases>, config: &Path) -> Arc<Control> {
        let datapath = Seam {
            hooks: self.hooks.clone(),
            workers: self.workers.clone(),
            host: self.host.clone(),
            changed: self.changed.clone(),
            tables: self.tables.clone(),
            cores: self.cores.clone(),
        };
        Arc::new(Control::new(
            self.tables.clone(),
            Box::new(datapath),
            leases,
            settings.engine.clone(),
            settings.interfaces.clone(),
            Some(config.to_path_buf()),
        ))
    }

    /// Step 6, and from here on a thread follows the links.
    fn open_hooks(&self) -> Result<(), String> {
        let hooked = |hook: &PortHook| hook.interface.vlan.is_none();
        let ports: Vec<_> = self.hooks.lock().ports.iter().map(hooked).collect();
        // Inside first: what arrives there is held before anything can answer from outside.
        let side =
            |port: &PortId| self.hooks.lock().ports[usize::from(port.0)].interface.side == Side::Unprotected;
        let ports = (0..).map(PortId).zip(ports);
        let mut order: Vec<_> = ports.filter_map(|(port, hooked)| hooked.then_some(port)).collect();
        order.sort_by_key(side);
        for port in order {
            self.hooks.lock().switch(port).map_err(|error| error.to_string())?;
        }
        let events = self.link_events.lock().unwrap_or_else(PoisonError::into_inner).take();
        let events = events.ok_or("the hooks were opened twice")?;
        let links = Links { hooks: self.hooks.clone(), workers: self.workers.clone() };
        let thread = std::thread::Builder::new()
            .name("adit-links".into())
            .spawn(move || follow_links(&links, &events));
        thread.map(drop).map_err(|error| format!("a thread: {error}"))
    }
}

/// The host path, or the end of what an earlier life left of one.
fn host_path(
    engine: &Engine,
    tables: &Arc<Tables>,
    workers: &Arc<packet_io::Datapath>,
    changed: &Arc<Notify>,
) -> Result<Option<Host>, String> {
    let instance = &engine.instance;
    if engine.host_path {
        let host = Host::start(instance, tables.clone(), workers.clone(), changed.clone());
        return host
            .map(Some)
            .map_err(|error| format!("engine.host-path: the device of instance {instance}: {error}"));
    }
    if let Err(error) = host::remove(instance) {
        tracing::warn!(%error, "what may be left of a host path");
    }
    Ok(None)
}

/// What has to follow a port's interface.
trait PortParts {
    /// Hooks onto the interface that the port has now. Without sockets they drop what they would redirect.
    fn hook(&self, port: PortId, ifindex: u32) -> Result<(), Box<dyn Error>>;
    /// Forgets the interface that the port had.
    fn unhook(&self, port: PortId);
    /// Closes sockets, or opens them.
    fn sockets(&self, port: PortId, event: packet_io::LinkEvent) -> Result<(), Box<dyn Error>>;
}

struct Links {
    hooks: Arc<Hooks>,
    workers: Arc<packet_io::Datapath>,
}

impl PortParts for Links {
    fn hook(&self, port: PortId, ifindex: u32) -> Result<(), Box<dyn Error>> {
        let mut hooks = self.hooks.lock();
        hooks.load(port, ifindex)?;
        Ok(hooks.switch(port)?)
    }

    fn unhook(&self, port: PortId) {
        self.hooks.lock().forget(port);
    }

    fn sockets(&self, port: PortId, event: packet_io::LinkEvent) -> Result<(), Box<dyn Error>> {
        Ok(self.workers.link_event(port, event)?)
    }
}

/// Keeps hooks and sockets up with interfaces that come and go, until nobody tells of them any more.
fn follow_links(parts: &impl PortParts, events: &mpsc::Receiver<LinkEvent>) {
    let mut backlogs: BTreeMap<PortId, Backlog> = BTreeMap::new();
    loop {
        let retry_at = backlogs.values().filter_map(|backlog| backlog.retry_at).min();
        let event = match retry_at {
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(LinkEvent { port, change }) => backlogs.entry(port).or_default().add(change),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // What was said meanwhile may have overtaken what would be tried now.
        for LinkEvent { port, change } in events.try_iter() {
            backlogs.entry(port).or_default().add(change);
        }
        let now = Instant::now();
        for (&port, backlog) in backlogs.iter_mut().filter(|(_, backlog)| backlog.is_due(now)) {
            if let Err(error) = backlog.work(|change| follow(parts, port, change)) {
                tracing::warn!(port = port.0, %error, "the port stays closed; trying again");
            }
        }
    }
}

fn follow(parts: &impl PortParts, port: PortId, change: LinkChange) -> Result<(), Box<dyn Error>> {
    use packet_io::LinkEvent as Io;
    match change {
        LinkChange::Up => parts.sockets(port, Io::Up),
        LinkChange::Down => parts.sockets(port, Io::Down),
        LinkChange::Gone => {
            parts.sockets(port, Io::Gone)?;
            parts.unhook(port);
            Ok(())
        }
        LinkChange::Appeared { ifindex } => {
            // The hooks first: their maps are filled, and until they are on, the interface is open. That must not
            // take as long as opening sockets does, nor depend on it.
            parts.hook(port, ifindex)?;
            parts.sockets(port, Io::Appeared { ifindex })
        }
    }
}

/// What is still to be done for one port, in order. A change that fails is tried again and holds up its own port's
/// later ones only, until one of those makes it moot.
#[derive(Default)]
struct Backlog {
    changes: VecDeque<LinkChange>,
    retry_at: Option<Instant>,
}

impl Backlog {
    fn add(&mut self, change: LinkChange) {
        let overtaken = |earlier: &LinkChange| match change {
            // The new interface's hooks must not wait for the old one's sockets to close, which opening the new ones
            // sees to.
            LinkChange::Gone | LinkChange::Appeared { .. } => true,
            LinkChange::Up | LinkChange::Down => matches!(earlier, LinkChange::Up | LinkChange::Down),
        };
        self.changes.retain(|earlier| !overtaken(earlier));
        self.changes.push_back(change);
        self.retry_at = None;
    }

    fn is_due(&self, now: Instant) -> bool {
        !self.changes.is_empty() && self.retry_at.is_none_or(|at| at <= now)
    }

    fn work<E>(&mut self, mut follow: impl FnMut(LinkChange) -> Result<(), E>) -> Result<(), E> {
        self.retry_at = None;
        while let Some(&change) = self.changes.front() {
            if let Err(error) = follow(change) {
                self.retry_at = Some(Instant::now() + RETRY);
                return Err(error);
            }
            self.changes.pop_front();
        }
        Ok(())
    }
}

/// What control may ask of io.
struct Seam {
    hooks: Arc<Hooks>,
    workers: Arc<packet_io::Datapath>,
    host: Option<Arc<Host>>,
    changed: Arc<Notify>,
    tables: Arc<Tables>,
    cores: Vec<usize>,
}

impl control::Datapath for Seam {
    fn set_covers(&self, steering: &Cover, guard: &Cover) -> Result<(), String> {
        let entries = |steering: &[_], guard: &[_], bypass: &[_]| {
            let prefixes = |prefixes: &[Prefix], [protect, discard, bypass]: [bool; 3]| -> Vec<_> {
                let entry = |&prefix| CoverPrefix { prefix, protect, discard, bypass };
                prefixes.iter().map(entry).collect()
            };
            let discard = prefixes(steering, [false, true, false]);
            let protect = prefixes(guard, [true, false, false]);
            [discard, protect, prefixes(bypass, [false, false, true])].concat()
        };
        let tables = SteeringTables {
            local: entries(&steering.local, &guard.local, &steering.bypass.0),
            remote: entries(&steering.remote, &guard.remote, &steering.bypass.1),
            nat_ports: steering.nat_ports.clone(),
        };
        self.hooks.lock().steering.set_cover(&tables).map_err(|error| error.to_string())
    }

    fn add_spi(&self, spi: Spi) -> Result<(), String> {
        self.hooks.lock().steering.add_spi(spi).map_err(|error| error.to_string())
    }

    fn tell_of_drops(&self, on: bool) -> Result<(), String> {
        self.hooks.lock().steering.tell_of_drops(on).map_err(|error| error.to_string())
    }

    fn remove_spi(&self, spi: Spi) -> Result<(), String> {
        self.hooks.lock().steering.remove_spi(spi).map_err(|error| error.to_string())
    }

    fn policies_changed(&self) {
        self.changed.notify_one();
    }

    fn report(&self) -> DatapathReport {
        let report = self.workers.report();
        let network = self.tables.network.get();
        let hooks = self.hooks.lock();
        let mut warnings = Vec::new();
        let mut steering: Vec<Counter> = Vec::new();
        let mut interfaces = Vec::new();
        for (number, hook) in hooks.ports.iter().enumerate() {
            let port = network.as_ref().and_then(|network| network.ports.get(number));
            let name = &hook.interface.name;
            if let Some(why) = hook.attached.as_ref().and_then(|attached| attached.native_refused.as_ref()) {
                warnings.push(format!(
                    "{name}: its driver does not take XDP ({why}), so it runs in skb mode, slower"
                ));
            }
            for (outcome, frames) in hooks.steering.counters(hook.ifindex).unwrap_or_default() {
                match steering.iter_mut().find(|counter| counter.name == outcome.name()) {
                    Some(counter) => counter.value += frames,
                    None => steering.push(Counter { name: outcome.name().into(), value: frames }),
                }
            }
            let sockets: Vec<_> = report.sockets.iter().filter(|socket| socket.interface == *name).collect();
            interfaces.push(InterfaceReport {
                name: name.clone(),
                side: match hook.interface.side {
                    Side::Protected => "protected",
                    Side::Unprotected => "unprotected",
                }
                .into(),
                mode: match (&hook.attached, hook.interface.vlan) {
                    (_, Some(_)) => "vlan",
                    (Some(attached), None) => attached.mode.name(),
                    (None, None) => "detached",
                }
                .into(),
                up: port.is_some_and(|port| port.up),
                mtu: port.map_or(0, |port| port.mtu),
                queues: sockets.len() as u32,
                counters: socket_counters(&sockets),
            });
        }
        if report.dropped(DropReason::PartialChecksum) > 0 {
            warnings.push(
                "packets with unfinished checksums arrive: ethtool -K DEV tx off on the sending host".into(),
            );
        }
        let host = self.host.as_ref().map(|host| host.report());
        if let Some(problem) = host.as_ref().and_then(|host| host.problem.as_ref()) {
            warnings.push(format!("the host path is not complete: {problem}"));
        }
        let host = host.map(|host| HostReport { device: host.device, up: host.up, routes: host.routes });
        DatapathReport { interfaces, host, workers: self.worker_reports(&report), steering, warnings }
    }
}

impl Seam {
    fn worker_reports(&self, report: &Report) -> Vec<WorkerReport> {
        let counters = self.workers.counters();
        let held = report.workers.iter().map(|worker| worker.held);
        let mut workers: Vec<_> = counters
            .iter()
            .zip(held)
            .enumerate()
            .map(|(number, (counters, held))| {
                WorkerReport::read(number as u32, self.cores[number] as u32, held, counters)
            })
            .collect();
        // Frames between two workers belong to neither, and fragments to all; they are told with the first.
        if let Some(first) = workers.first_mut() {
            first.in_flight += report.handed_over + self.tables.reassembly.held();
        }
        workers
    }
}

/// The kernel's and our own counters of an interface's sockets, summed.
fn socket_counters(sockets: &[&crate::io::datapath::SocketReport]) -> Vec<Counter> {
    let sum = |name: &str, of: &dyn Fn(&crate::io::datapath::SocketReport) -> u64| Counter {
        name: name.into(),
        value: sockets.iter().map(|socket| of(socket)).sum(),
    };
    let mut counters = vec![
        sum("wakeups", &|socket| socket.wakeups),
        sum("wakeups_incomplete", &|socket| socket.wakeups_incomplete),
        sum("refused", &|socket| socket.refused),
        sum("link_errors", &|socket| socket.link_errors),
        sum("zero_copy_sockets", &|socket| socket.zero_copy.into()),
    ];
    for (index, name) in XDP_STATISTICS.iter().enumerate() {
        counters.push(sum(name, &|socket| socket.xdp[index]));
    }
    counters
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use LinkChange::{Appeared, Down, Gone, Up};

    const PORT: PortId = PortId(0);

    /// Interface 5 has hooks that fail, interface 6 sockets that do.
    #[derive(Default)]
    struct Parts(RefCell<Vec<String>>);

    impl PortParts for Parts {
        fn hook(&self, _: PortId, ifindex: u32) -> Result<(), Box<dyn Error>> {
            self.0.borrow_mut().push(format!("hook {ifindex}"));
            if ifindex == 5 { Err("no such interface".into()) } else { Ok(()) }
        }
        fn unhook(&self, _: PortId) {
            self.0.borrow_mut().push("unhook".into());
        }
        fn sockets(&self, _: PortId, event: packet_io::LinkEvent) -> Result<(), Box<dyn Error>> {
            self.0.borrow_mut().push(format!("{event:?}"));
            match event {
                packet_io::LinkEvent::Appeared { ifindex: 6 } => Err("busy".into()),
                _ => Ok(()),
            }
        }
    }

    impl Parts {
        fn work(&self, backlog: &mut Backlog) -> (bool, String) {
            let done = backlog.work(|change| follow(self, PORT, change)).is_ok();
            (done, self.0.take().join(", "))
        }
    }

    #[test]
    fn an_interface_that_came_back_is_hooked_before_and_without_its_sockets() {
        let (parts, mut backlog) = (Parts::default(), Backlog::default());
        backlog.add(Appeared { ifindex: 6 });
        let (done, steps) = parts.work(&mut backlog);
        assert_eq!((done, &*steps), (false, "hook 6, Appeared { ifindex: 6 }"));
        assert!(!backlog.is_due(Instant::now()));
        assert!(backlog.is_due(Instant::now() + RETRY));
    }

    #[test]
    fn what_failed_is_not_tried_again_behind_what_came_later() {
        let (parts, mut backlog) = (Parts::default(), Backlog::default());
        backlog.add(Appeared { ifindex: 5 });
        backlog.add(Up);
        assert_eq!(parts.work(&mut backlog), (false, "hook 5".into()));
        // Deleted and made again meanwhile: interface 5 will never come back.
        for change in [Gone, Appeared { ifindex: 7 }, Up, Down, Up] {
            backlog.add(change);
        }
        assert!(backlog.is_due(Instant::now()));
        let steps = "hook 7, Appeared { ifindex: 7 }, Up";
        assert_eq!(parts.work(&mut backlog), (true, steps.into()));
        assert!(!backlog.is_due(Instant::now() + RETRY), "nothing is left to try");
        backlog.add(Gone);
        assert_eq!(parts.work(&mut backlog), (true, "Gone, unhook".into()));
    }

    #[test]
    fn a_port_that_fails_does_not_hold_up_another() {
        let (links, events) = mpsc::channel();
        for (port, change) in [(0, Appeared { ifindex: 5 }), (1, Appeared { ifindex: 8 }), (1, Up)] {
            links.send(LinkEvent { port: PortId(port), change }).unwrap();
        }
        drop(links);
        let parts = Parts::default();
        follow_links(&parts, &events);
        assert_eq!(parts.0.take(), ["hook 5", "hook 8", "Appeared { ifindex: 8 }", "Up"]);
    }
}
