//! The daemon: the only file that sees both io and control.
//!
//! ```text
//! 1. configuration checked, cryptography self-tested, state directory locked
//! 2. the kernel's routes and neighbours mirrored
//! 3. steering programs loaded, own addresses filled in                    nothing attached yet
//! 4. sockets bound to every queue and inserted; workers run               nothing arrives yet
//! 5. policies and SAs applied: covers and SPIs filled in
//! 6. the hooks switched to the new programs                               from here on packets arrive
//! 7. the control socket opened
//! ```
//!
//! The order is what keeps the start closed: a hook that is switched before its maps are filled leaks.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::control::check;
use crate::control::config::XdpMode;
use crate::control::keyring::Keyring;
use crate::control::report::{Counter, DatapathReport, InterfaceReport, WorkerReport};
use crate::control::server::Server;
use crate::control::settings::{Interface, Settings};
use crate::control::{self, Control};
use crate::crypto::{self, IvSource};
use crate::io::datapath::{PortInterface, Report};
use crate::io::socket::{SocketOptions, XDP_STATISTICS};
use crate::io::steering::{
    AttachMode, AttachedPort, CoverPrefix, PortSpec, Steering, SteeringConfig, SteeringError, SteeringTables,
};
use crate::io::{self as packet_io, DatapathConfig, NeighbourRequests, Online, SocketRegistry};
use crate::pipeline::{DropReason, Pipeline, Tables};
use crate::policy::Spd;
use crate::policy::cover::Cover;
use crate::policy::spd::Fallback;
use crate::route::mirror::{LinkChange, LinkEvent, Mirror};
use crate::route::{Network, PortId, Resolver, Side};
use crate::sa::Sad;
use crate::sa::publish::{self, Published};
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
    let keyring = Keyring::open(&settings.engine.state_dir).map_err(|error| error.to_string())?;
    let daemon = Daemon::start(&settings, force)?;
    let control = daemon.control(&settings, keyring, config);
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
    /// Loads programs for the interface that a port has now.
    fn load(&mut self, port: PortId, ifindex: u32) -> Result<(), SteeringError> {
        let hook = &mut self.ports[usize::from(port.0)];
        let gone = std::mem::replace(&mut hook.ifindex, ifindex);
        hook.attached = None;
        let spec = PortSpec { name: hook.interface.name.clone(), ifindex, side: hook.interface.side };
        if gone != 0 && gone != ifindex {
            self.steering.forget(gone)?;
        }
        self.steering.load(&spec)
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
    cores: Vec<usize>,
    links: mpsc::Sender<LinkEvent>,
    link_events: Mutex<Option<mpsc::Receiver<LinkEvent>>>,
    _mirror: Mirror,
}

impl Daemon {
    /// Steps 2 to 4.
    fn start(settings: &Settings, force: bool) -> Result<Self, String> {
        let engine = &settings.engine;
        let tables = Arc::new(Tables {
            sad: Sad::new(),
            spd: Published::new(Some(Arc::new(Spd::new(Vec::new(), Fallback::Discard, 0)))),
            network: Published::new(None),
        });
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
        let mirror = {
            let (tables, hooks, links) = (tables.clone(), hooks.clone(), links.clone());
            let names =
                settings.interfaces.iter().map(|interface| (interface.name.as_str().into(), interface.side));
            let publish = move |network: Arc<Network>| {
                // Before packets meet the new picture, the hooks know which addresses are the gateway's own.
                hooks.lock().own_addresses(&network);
                tables.network.replace(Some(network));
                publish::reclaim();
            };
            let on_link = move |event| {
                // Nobody listens only when the daemon ends.
                let _ = links.send(event);
            };
            Mirror::start(names.collect(), publish, on_link)
        };
        let mirror = mirror.map_err(|error| format!("the kernel's routes and neighbours: {error}"))?;

        let network = tables.network.get().ok_or("the kernel's tables came without interfaces")?;
        let mut sockets = Vec::new();
        for (number, port) in network.ports.iter().enumerate() {
            let id = PortId(number as u16);
            if port.ifindex == 0 {
                return Err(format!(
                    "interface[{number}].name: expected an interface that exists, found {:?}",
                    port.name
                ));
            }
            hooks.lock().load(id, port.ifindex).map_err(|error| error.to_string())?;
            sockets.push(PortInterface { port: id, interface: port.name.to_string() });
        }

        let cores = match &engine.cores {
            Some(cores) => cores.iter().map(|&core| core as usize).collect(),
            None => core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect(),
        };
        let config = DatapathConfig { ports: sockets, cores, sockets: SocketOptions::default() };
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
        let link_events = Mutex::new(Some(link_events));
        Ok(Self { tables, hooks, workers, cores: config.cores, links, link_events, _mirror: mirror })
    }

    fn control(&self, settings: &Settings, keyring: Keyring, config: &Path) -> Arc<Control> {
        let datapath = Seam {
            hooks: self.hooks.clone(),
            workers: self.workers.clone(),
            tables: self.tables.clone(),
            cores: self.cores.clone(),
        };
        Arc::new(Control::new(
            self.tables.clone(),
            Box::new(datapath),
            keyring,
            settings.engine.clone(),
            settings.interfaces.clone(),
            Some(config.to_path_buf()),
        ))
    }

    /// Step 6, and from here on a thread follows the links.
    fn open_hooks(&self) -> Result<(), String> {
        let ports = self.hooks.lock().ports.len() as u16;
        // Inside first: what arrives there is held before anything can answer from outside.
        let side =
            |port: &PortId| self.hooks.lock().ports[usize::from(port.0)].interface.side == Side::Unprotected;
        let mut order: Vec<_> = (0..ports).map(PortId).collect();
        order.sort_by_key(side);
        for port in order {
            self.hooks.lock().switch(port).map_err(|error| error.to_string())?;
        }
        let events = self.link_events.lock().unwrap_or_else(PoisonError::into_inner).take();
        let events = events.ok_or("the hooks were opened twice")?;
        let follower = LinkFollower {
            hooks: self.hooks.clone(),
            workers: self.workers.clone(),
            again: self.links.clone(),
        };
        let thread =
            std::thread::Builder::new().name("adit-links".into()).spawn(move || follower.run(&events));
        thread.map(drop).map_err(|error| format!("a thread: {error}"))
    }
}

/// Keeps sockets and hooks up with interfaces that come and go.
struct LinkFollower {
    hooks: Arc<Hooks>,
    workers: Arc<packet_io::Datapath>,
    again: mpsc::Sender<LinkEvent>,
}

impl LinkFollower {
    fn run(&self, events: &mpsc::Receiver<LinkEvent>) {
        for event in events {
            if let Err(error) = self.follow(event) {
                tracing::warn!(port = event.port.0, %error, "the port stays closed; trying again");
                std::thread::sleep(RETRY);
                // Behind what has happened since: if the interface is gone again, that is said there.
                let _ = self.again.send(event);
            }
        }
    }

    fn follow(&self, LinkEvent { port, change }: LinkEvent) -> Result<(), Box<dyn std::error::Error>> {
        use packet_io::LinkEvent as Io;
        match change {
            LinkChange::Up => self.workers.link_event(port, Io::Up)?,
            LinkChange::Down => self.workers.link_event(port, Io::Down)?,
            LinkChange::Gone => {
                self.workers.link_event(port, Io::Gone)?;
                self.hooks.lock().forget(port);
            }
            LinkChange::Appeared { ifindex } => {
                self.hooks.lock().load(port, ifindex)?;
                self.workers.link_event(port, Io::Appeared { ifindex })?;
                self.hooks.lock().switch(port)?;
            }
        }
        Ok(())
    }
}

/// What control may ask of io.
struct Seam {
    hooks: Arc<Hooks>,
    workers: Arc<packet_io::Datapath>,
    tables: Arc<Tables>,
    cores: Vec<usize>,
}

impl control::Datapath for Seam {
    fn set_covers(&self, steering: &Cover, guard: &Cover) -> Result<(), String> {
        let entries = |steering: &[_], guard: &[_]| {
            let discard =
                steering.iter().map(|&prefix| CoverPrefix { prefix, protect: false, discard: true });
            let protect = guard.iter().map(|&prefix| CoverPrefix { prefix, protect: true, discard: false });
            discard.chain(protect).collect()
        };
        let tables = SteeringTables {
            local: entries(&steering.local, &guard.local),
            remote: entries(&steering.remote, &guard.remote),
        };
        self.hooks.lock().steering.set_cover(&tables).map_err(|error| error.to_string())
    }

    fn add_spi(&self, spi: Spi) -> Result<(), String> {
        self.hooks.lock().steering.add_spi(spi).map_err(|error| error.to_string())
    }

    fn remove_spi(&self, spi: Spi) -> Result<(), String> {
        self.hooks.lock().steering.remove_spi(spi).map_err(|error| error.to_string())
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
                mode: hook.attached.as_ref().map_or("detached", |attached| attached.mode.name()).into(),
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
        DatapathReport { interfaces, workers: self.worker_reports(&report), steering, warnings }
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
        // Frames between two workers belong to neither; they are told with the first.
        if let Some(first) = workers.first_mut() {
            first.in_flight += report.handed_over;
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
