//! The netlink side: a thread that keeps a [`Network`] equal to the kernel's tables.
//!
//! Multicast groups are joined first, then everything is dumped, then events are followed, so nothing falls
//! between. Events about links, addresses and routes say only *that* something changed; what it is now is said
//! by a new dump. Following route events one by one cannot be right: the kernel drops IPv4 routes without a word
//! when a link or address goes, and replaced and multipath routes are told in ways that depend on the version.
//! Dumps are spaced by what they cost, so that a large table that never rests takes a bounded share of one core.
//! Neighbours change far more often and their events are complete, so those are followed one by one.
//!
//! When events were lost (ENOBUFS) everything is dumped again; when the socket fails, a new one is opened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::LinkExtentMask;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{mpsc, oneshot};

use super::builder::RoutesBuilder;
use super::kernel::{self, Answer};
use super::resolver::{Key, Request, Schedule};
use super::{LARGEST_MTU, Neighbours, Network, Port, PortId, Resolver, Routes};

/// Events are gathered for this long before they are acted on.
const COALESCE: Duration = Duration::from_millis(10);
/// After a dump that took t, the next waits for at least this many times t.
const DUMP_SPACING: u32 = 4;
/// How often next hops in use are looked over.
const TICK: Duration = Duration::from_secs(1);
/// Pause before a failed netlink socket is opened again.
const RECONNECT: Duration = Duration::from_secs(1);

/// What became of a port's interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkChange {
    /// Administratively and physically up now.
    Up,
    /// Not any more.
    Down,
    /// Deleted, renamed, or moved to another namespace: sockets on it are dead.
    Gone,
    /// There is an interface of this name (again).
    Appeared {
        /// Its kernel index.
        ifindex: u32,
    },
}

/// A change of one port. The picture that shows it is published before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkEvent {
    /// Whose interface.
    pub port: PortId,
    /// What became of it.
    pub change: LinkChange,
}

/// The running mirror; dropping it ends its thread.
pub struct Mirror {
    resolver: Resolver,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    /// Starts the mirror in the network namespace of the calling thread and waits for the first picture.
    ///
    /// `ports` are the interfaces adit steers, absent ones, in the order of their [`PortId`]s. They are
    /// followed by name: an interface may be missing, and may be deleted and made anew. `publish` takes every
    /// picture, at most one each 10 ms; `on_link` takes the changes since the first picture.
    ///
    /// # Errors
    /// When no thread or netlink socket can be had, or the first dump fails.
    pub fn start(
        ports: Vec<Port>,
        publish: impl FnMut(Arc<Network>) + Send + 'static,
        on_link: impl FnMut(LinkEvent) + Send + 'static,
    ) -> io::Result<Self> {
        let (resolver, requests) = Resolver::channel();
        let (stop, stopped) = oneshot::channel();
        let (ready, first_picture) = std_mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("adit-route".into()).spawn(move || {
            let tables = Tables::new(ports, Box::new(publish), Box::new(on_link));
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            runtime.block_on(async {
                tokio::select! {
                    () = follow(tables, requests, ready) => {}
                    _ = stopped => {}
                }
            });
        })?;
        let mirror = Self { resolver, stop: Some(stop), thread: Some(thread) };
        first_picture.recv().map_err(|_| io::Error::other("the route mirror ended at its start"))??;
        Ok(mirror)
    }

    /// For workers that need a neighbour.
    pub fn resolver(&self) -> Resolver {
        self.resolver.clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the panic hook; there is nobody to hand it to here.
            let _ = thread.join();
        }
    }
}

/// Follows the kernel over one socket after another. Ends only when the very first dump fails.
async fn follow(
    mut tables: Tables,
    mut requests: mpsc::Receiver<Request>,
    ready: std_mpsc::SyncSender<io::Result<()>>,
) {
    let mut ready = Some(ready);
    loop {
        let Err(error) = follow_socket(&mut tables, &mut requests, &mut ready).await;
        if let Some(ready) = ready.take() {
            let _ = ready.send(Err(error));
            return;
        }
        tracing::warn!(%error, "lost the kernel's routes and neighbours; opening netlink again");
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Ends the task that moves messages when the socket is given up.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow_socket(
    tables: &mut Tables,
    requests: &mut mpsc::Receiver<Request>,
    ready: &mut Option<std_mpsc::SyncSender<io::Result<()>>>,
) -> io::Result<std::convert::Infallible> {
    let (connection, handle, mut events) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    let _connection = Connection(tokio::spawn(connection));
    tables.dirty = Dirty::ALL;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let act_at = tables.act_at();
        tokio::select! {
            event = events.next() => {
                let (event, _) = event.ok_or_else(|| io::Error::other("the netlink socket was closed"))?;
                tables.note(event);
            }
            // The sender lives in the Mirror, which ends this task before it goes.
            Some(request) = requests.recv() => {
                let now = Instant::now();
                if tables.schedule.request(request, now) {
                    let (Request::Resolve(key) | Request::InUse(key)) = request;
                    tables.ask(&handle, key).await;
                }
            }
            _ = tick.tick() => {
                for key in tables.due() {
                    tables.ask(&handle, key).await;
                }
            }
            () = sleep_until(act_at), if act_at.is_some() => {
                tables.refresh(&handle).await.map_err(io::Error::other)?;
                if let Some(ready) = ready.take() {
                    let _ = ready.send(Ok(()));
                }
            }
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    if let Some(instant) = instant {
        tokio::time::sleep_until(instant.into()).await;
    }
}

/// What is known to be out of date.
#[derive(Clone, Copy, Default)]
struct Dirty {
    /// Links, addresses and routes: to be dumped.
    topology: bool,
    /// Neighbours: to be dumped, since events were lost.
    neighbour_dump: bool,
    /// Neighbours: events were followed, a picture is due.
    neighbours: bool,
}

impl Dirty {
    const ALL: Self = Self { topology: true, neighbour_dump: true, neighbours: true };

    fn needs_dump(self) -> bool {
        self.topology || self.neighbour_dump
    }
}

/// The mirror's own copy of the tables, and where pictures of it go.
struct Tables {
    publish: Box<dyn FnMut(Arc<Network>) + Send>,
    on_link: Box<dyn FnMut(LinkEvent) + Send>,
    generation: u64,
    ports: Vec<Port>,
    routes: Arc<Routes>,
    /// On every interface, by its index: a neighbour may be told before its link.
    neighbours: BTreeMap<(u32, IpAddr), Answer>,
    published_neighbours: Arc<Neighbours>,
    schedule: Schedule,
    /// Interfaces deleted since the last dump of links: one of the same index is another one.
    deleted: HashSet<u32>,
    dirty: Dirty,
    /// The earliest moment for the next dump.
    dump_after: Instant,
    /// The earliest moment for the next picture.
    publish_after: Instant,
}

impl Tables {
    fn new(
        ports: Vec<Port>,
        publish: Box<dyn FnMut(Arc<Network>) + Send>,
        on_link: Box<dyn FnMut(LinkEvent) + Send>,
    ) -> Self {
        Self {
            publish,
            on_link,
            generation: 0,
            ports,
            routes: Arc::default(),
            neighbours: BTreeMap::new(),
            published_neighbours: Arc::default(),
            schedule: Schedule::default(),
            deleted: HashSet::new(),
            dirty: Dirty::default(),
            dump_after: Instant::now(),
            publish_after: Instant::now(),
        }
    }

    /// Takes in what the kernel says without being asked.
    fn note(&mut self, event: NetlinkMessage<RouteNetlinkMessage>) {
        let was_clean = !self.dirty.needs_dump();
        match event.payload {
            NetlinkPayload::Overrun(_) => self.dirty = Dirty::ALL,
            NetlinkPayload::InnerMessage(message) => match message {
                RouteNetlinkMessage::DelLink(link) => {
                    // AF_BRIDGE: the interface left a bridge, and lives.
                    if link.header.interface_family != AddressFamily::Bridge {
                        self.deleted.insert(link.header.index);
                    }
                    self.dirty.topology = true;
                }
                RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_) => self.dirty.topology = true,
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                    self.dirty.topology |= kernel::is_mirrored(&route);
                }
                RouteNetlinkMessage::NewNeighbour(neighbour) => {
                    if let Some((key, mac)) = kernel::neighbour(&neighbour) {
                        self.set_neighbour(key, mac);
                    }
                }
                RouteNetlinkMessage::DelNeighbour(neighbour) => {
                    if let Some((key, _)) = kernel::neighbour(&neighbour) {
                        self.set_neighbour(key, None);
                    }
                }
                _ => {}
            },
            _ => {}
        }
        if was_clean && self.dirty.needs_dump() {
            // One change of a link is many events.
            self.dump_after = self.dump_after.max(Instant::now() + COALESCE);
        }
    }

    fn set_neighbour(&mut self, key: (u32, IpAddr), answer: Option<Answer>) {
        let before = match answer {
            Some(answer) => self.neighbours.insert(key, answer),
            None => self.neighbours.remove(&key),
        };
        self.dirty.neighbours |= before != answer && self.port_of(key.0).is_some();
    }

    fn port_of(&self, ifindex: u32) -> Option<PortId> {
        port_of(&self.ports, ifindex)
    }

    /// When [`Tables::refresh`] is due: neighbours do not wait for the spacing of dumps.
    fn act_at(&self) -> Option<Instant> {
        let dump = self.dirty.needs_dump().then_some(self.dump_after);
        let publish = self.dirty.neighbours.then_some(self.publish_after);
        dump.into_iter().chain(publish).min()
    }

    /// Reads again what is out of date, publishes the picture, and tells of links.
    async fn refresh(&mut self, handle: &Handle) -> Result<(), rtnetlink::Error> {
        let start = Instant::now();
        let mut dirty = std::mem::take(&mut self.dirty);
        if start < self.dump_after {
            self.dirty = Dirty { neighbours: false, ..dirty };
            dirty = Dirty { neighbours: true, ..Dirty::default() };
        }
        let mut link_events = Vec::new();
        if dirty.topology {
            let deleted = std::mem::take(&mut self.deleted);
            let ports = dump_ports(handle, &self.ports).await?;
            self.routes = Arc::new(dump_routes(handle, &ports).await?);
            if self.generation > 0 {
                link_events = link_changes(&self.ports, &ports, &deleted);
            }
            self.ports = ports;
        }
        if dirty.neighbour_dump {
            self.neighbours = dump_neighbours(handle).await?;
        }
        let end = Instant::now();
        if dirty.needs_dump() {
            self.dump_after = end + (end - start) * DUMP_SPACING;
        }
        self.publish_after = end + COALESCE;

        let on_ports = self.neighbours.iter().filter_map(|(&(ifindex, address), &Answer { mac, .. })| {
            self.port_of(ifindex).map(|port| ((port, address), mac))
        });
        self.published_neighbours = Arc::new(on_ports.collect());
        self.generation += 1;
        (self.publish)(Arc::new(Network::new(
            self.ports.clone(),
            self.routes.clone(),
            self.published_neighbours.clone(),
            self.generation,
        )));
        for event in link_events {
            (self.on_link)(event);
        }
        Ok(())
    }

    /// Next hops in use that the kernel should hear of now.
    fn due(&mut self) -> Vec<Key> {
        let (ports, neighbours) = (&self.ports, &self.neighbours);
        self.schedule.due(Instant::now(), |&(port, address)| {
            ports
                .get(usize::from(port.0))
                .is_some_and(|port| neighbours.contains_key(&(port.ifindex, address)))
        })
    }

    /// Has the kernel resolve or verify a neighbour, as if it had a packet for it. Its answer is an event.
    async fn ask(&self, handle: &Handle, (port, address): Key) {
        let Some(port) = self.ports.get(usize::from(port.0)).filter(|port| port.ifindex != 0 && port.up)
        else {
            return;
        };
        // NTF_USE would turn what the operator wrote down into an entry that has to answer.
        if self.neighbours.get(&(port.ifindex, address)).is_some_and(|answer| answer.permanent) {
            return;
        }
        // Not EXCL, and no state of our own: NTF_USE on what is there, or on a new entry.
        let request = handle.neighbours().add(port.ifindex, address).replace();
        let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use);
        if let Err(error) = request.execute().await {
            tracing::debug!(port = %port.name, %address, %error, "the kernel refused to ask for a neighbour");
        }
    }
}

fn port_of(ports: &[Port], ifindex: u32) -> Option<PortId> {
    let index = ports.iter().position(|port| port.ifindex == ifindex)?;
    (ifindex != 0).then_some(PortId(index as u16))
}

/// The ports of `known`, as the kernel has them now.
async fn dump_ports(handle: &Handle, known: &[Port]) -> Result<Vec<Port>, rtnetlink::Error> {
    let absent = |port: &Port| Port { vlan: port.vlan, ..Port::absent(port.name.clone(), port.side) };
    let mut ports: Vec<Port> = known.iter().map(absent).collect();
    let links = handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
    let mut links = std::pin::pin!(links.execute());
    while let Some(message) = links.try_next().await? {
        let link = kernel::link(&message);
        if let Some(port) = ports.iter_mut().find(|port| *port.name == link.name) {
            port.ifindex = link.ifindex;
            port.mac = link.mac;
            port.mtu = link.mtu.min(LARGEST_MTU);
            port.up = link.up;
        }
    }
    let mut addresses = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = addresses.try_next().await? {
        if let Some((ifindex, address)) = kernel::address(&message)
            && let Some(port) = port_of(&ports, ifindex)
        {
            ports[usize::from(port.0)].addresses.push(address);
        }
    }
    Ok(ports)
}

async fn dump_routes(handle: &Handle, ports: &[Port]) -> Result<Routes, rtnetlink::Error> {
    let numbers: HashMap<u32, PortId> =
        ports.iter().filter_map(|port| Some((port.ifindex, port_of(ports, port.ifindex)?))).collect();
    let mut routes = RoutesBuilder::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let mut messages = std::pin::pin!(handle.route().get(request).execute());
        while let Some(message) = messages.try_next().await? {
            kernel::add_route(&mut routes, &message, |ifindex| numbers.get(&ifindex).copied());
        }
    }
    Ok(routes.build())
}

async fn dump_neighbours(handle: &Handle) -> Result<BTreeMap<(u32, IpAddr), Answer>, rtnetlink::Error> {
    let mut neighbours = BTreeMap::new();
    let mut messages = std::pin::pin!(handle.neighbours().get().execute());
    while let Some(message) = messages.try_next().await? {
        if let Some((key, Some(answer))) = kernel::neighbour(&message) {
            neighbours.insert(key, answer);
        }
    }
    Ok(neighbours)
}

/// What happened to each port between two dumps.
fn link_changes(before: &[Port], after: &[Port], deleted: &HashSet<u32>) -> Vec<LinkEvent> {
    let mut events = Vec::new();
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        let mut tell = |change| events.push(LinkEvent { port: PortId(index as u16), change });
        let replaced = before.ifindex != after.ifindex || deleted.contains(&after.ifindex);
        if replaced && before.ifindex != 0 {
            tell(LinkChange::Gone);
        }
        if replaced && after.ifindex != 0 {
            tell(LinkChange::Appeared { ifindex: after.ifindex });
        }
        let was_up = before.up && !replaced;
        match (was_up, after.up) {
            (false, true) => tell(LinkChange::Up),
            (true, false) => tell(LinkChange::Down),
            _ => {}
        }
    }
    events
}
