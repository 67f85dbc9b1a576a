//! Keeps the device, and the kernel's rules and routes to it, up with policies and addresses, on a thread of its own.

use std::io;
use std::net::IpAddr;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rtnetlink::Handle;
use tokio::sync::{Notify, oneshot};

use super::super::datapath::Datapath;
use super::HostQueue;
use super::device::{self, Ends, Link};
use super::plan::{self, Plan};
use super::routes::Installed;
use super::slot::{Slot, Turn};
use crate::pipeline::Tables;
use crate::route::{Network, Side};

/// Pause before what failed is tried again, or what only an operator can mend is looked at again.
const RETRY: Duration = Duration::from_secs(1);

/// What anyone may ask of the host path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostReport {
    /// The device.
    pub device: String,
    /// It is there and up.
    pub up: bool,
    /// What the gateway's own packets are routed into it for, as "10.2.0.0/16".
    pub routes: Vec<String>,
    /// Why not all of that works, when it does not.
    pub problem: Option<String>,
}

/// The running host path. Dropping it ends its thread; the device, the rules and the routes stay, until [`remove`].
pub struct Host {
    report: Arc<Mutex<HostReport>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Makes the device of `instance`, in the network namespace of the calling thread, and gives the workers their
    /// queues. From then on, whenever `changed` is notified, the kernel is given the routes that `tables` ask for.
    ///
    /// # Errors
    /// No TUN, no privilege, no netlink.
    pub fn start(
        instance: &str,
        tables: Arc<Tables>,
        workers: Arc<Datapath>,
        changed: Arc<Notify>,
    ) -> io::Result<Self> {
        let name = device::name(instance);
        let report = Arc::new(Mutex::new(HostReport { device: name.clone(), ..HostReport::default() }));
        let (stop, stopped) = oneshot::channel();
        let (ready, first) = std_mpsc::sync_channel(1);
        let thread = {
            let (instance, report) = (instance.to_owned(), report.clone());
            std::thread::Builder::new().name("adit-host".into()).spawn(move || {
                let work = async {
                    let keeper = Keeper::start(instance, tables, workers, report).await;
                    match keeper {
                        Ok(keeper) => {
                            let _ = ready.send(Ok(()));
                            keeper.run(&changed).await;
                        }
                        Err(error) => drop(ready.send(Err(error))),
                    }
                };
                let until_stopped = async {
                    tokio::select! { () = work => {}, _ = stopped => {} }
                };
                if let Err(error) = on_runtime(until_stopped) {
                    tracing::error!(%error, "the host path");
                }
            })?
        };
        first.recv().map_err(|_| io::Error::other("the host path ended at its start"))??;
        Ok(Self { report, stop: Some(stop), thread: Some(thread) })
    }

    /// How it stands.
    pub fn report(&self) -> HostReport {
        lock(&self.report).clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Takes the device of an instance whose daemon has ended away, and the rules and routes to it.
///
/// # Errors
/// Netlink's.
pub fn remove(instance: &str) -> io::Result<()> {
    on_runtime(async {
        let netlink = Netlink::open()?;
        let _turn = Turn::take().await?;
        let slot = Slot::find(&netlink.handle, instance).await?;
        let name = device::name(instance);
        let mut installed = read_installed(&netlink.handle, slot, &name).await?;
        installed.become_plan(&netlink.handle, &Plan::default(), 0).await.map_err(io::Error::other)?;
        device::delete(&netlink.handle, &name).await.map_err(io::Error::other)
    })?
}

/// What the kernel has for the device of this name, under this number or others.
async fn read_installed(handle: &Handle, slot: Slot, name: &str) -> io::Result<Installed> {
    let device = device::find(handle, name).await.map_err(io::Error::other)?;
    let ifindex = device.filter(|link| link.tun).map_or(0, |link| link.ifindex);
    Installed::read(handle, slot, ifindex).await.map_err(io::Error::other)
}

fn on_runtime<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A netlink socket and the task that serves it.
struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What the kernel was last brought up with.
#[derive(PartialEq, Default)]
struct Seen {
    plan: Plan,
    addresses: Vec<IpAddr>,
    link: Option<Link>,
    problem: Option<String>,
}

struct Keeper {
    instance: String,
    name: String,
    slot: Slot,
    tables: Arc<Tables>,
    workers: Arc<Datapath>,
    report: Arc<Mutex<HostReport>>,
    netlink: Netlink,
    installed: Installed,
    seen: Seen,
}

impl Keeper {
    async fn start(
        instance: String,
        tables: Arc<Tables>,
        workers: Arc<Datapath>,
        report: Arc<Mutex<HostReport>>,
    ) -> io::Result<Self> {
        let netlink = Netlink::open()?;
        let name = device::name(&instance);
        let slot = Slot::find(&netlink.handle, &instance).await?;
        let installed = read_installed(&netlink.handle, slot, &name).await?;
        let seen = Seen::default();
        let mut this = Self { instance, name, slot, tables, workers, report, netlink, installed, seen };
        this.seen.link = Some(this.bring_up().await?);
        Ok(this)
    }

    async fn run(mut self, changed: &Notify) {
        loop {
            match self.keep().await {
                Ok(()) if self.seen.problem.is_none() => changed.notified().await,
                Ok(()) => drop(tokio::time::timeout(RETRY, changed.notified()).await),
                Err(error) => {
                    let problem = Some(error.to_string());
                    let before = std::mem::replace(&mut lock(&self.report).problem, problem.clone());
                    if before != problem {
                        let device = &self.name;
                        tracing::warn!(device, %error, "the host path is not complete; trying again");
                    }
                    // What is wanted may change meanwhile.
                    let _ = tokio::time::timeout(RETRY, changed.notified()).await;
                    self.seen = Seen { link: self.seen.link, ..Seen::default() };
                }
            }
        }
    }

    /// The device, with an address, up, and a queue of it for each worker.
    async fn bring_up(&mut self) -> io::Result<Link> {
        let handle = &self.netlink.handle;
        let _turn = Turn::take().await?;
        let slot = Slot::find(handle, &self.instance).await?;
        if slot != self.slot {
            // What is under the number it had is for whoever has it now.
            self.installed = read_installed(handle, slot, &self.name).await?;
            self.slot = slot;
        }
        let ends = Ends::of(slot);
        let before = device::find(handle, &self.name).await.map_err(io::Error::other)?;
        let is_served = self.seen.link.is_some()
            && self.seen.link.map(|link| link.ifindex) == before.map(|link| link.ifindex);
        if !is_served {
            let devices = device::open(&self.name, self.workers.workers())?;
            let queues = devices.into_iter().map(|device| HostQueue::new(device, ends.engine));
            self.workers.open_host(queues);
        }
        let link = device::find(handle, &self.name).await.map_err(io::Error::other)?;
        let link = link.ok_or_else(|| io::Error::other("the device went away as it was made"))?;
        device::configure(handle, link.ifindex, &ends).await.map_err(io::Error::other)?;
        Ok(Link { up: true, ..link })
    }

    /// Looks at what there is, and does what is to be done about it.
    async fn keep(&mut self) -> io::Result<()> {
        let (Some(spd), Some(network)) = (self.tables.spd.get(), self.tables.network.get()) else {
            return Ok(());
        };
        let mut link = device::find(&self.netlink.handle, &self.name).await.map_err(io::Error::other)?;
        if link.is_none_or(|link| !link.up)
            || link.map(|link| link.ifindex) != self.seen.link.map(|link| link.ifindex)
        {
            link = Some(self.bring_up().await?);
            // A device takes its routes with it, also when it only goes down.
            self.installed.distrust_routes();
            self.seen.addresses.clear();
        }
        let mtu = plan::device_mtu(&network);
        if let Some(link) = link.as_mut().filter(|link| link.mtu != mtu) {
            device::set_mtu(&self.netlink.handle, link.ifindex, mtu).await.map_err(io::Error::other)?;
            link.mtu = mtu;
        }
        let plan = Plan::new(&spd, &network, self.slot.address().into());
        let problem = plan.has_peers_v4().then(|| strict_reverse_path(&network)).flatten();
        let seen = Seen { plan, addresses: network.own_addresses().to_vec(), link, problem };
        if seen == self.seen {
            return Ok(());
        }
        if let Some(problem) = seen.problem.as_ref().filter(|_| seen.problem != self.seen.problem) {
            tracing::warn!(device = self.name, "{problem}");
        }
        if seen.addresses != self.seen.addresses {
            // The kernel takes routes away with the address that they prefer as a source.
            self.installed.distrust_routes();
        }
        let device = link.map_or(0, |link| link.ifindex);
        self.installed
            .become_plan(&self.netlink.handle, &seen.plan, device)
            .await
            .map_err(io::Error::other)?;
        let routes = seen.plan.device_prefixes().map(|prefix| prefix.to_string()).collect();
        let up = link.is_some_and(|link| link.up);
        *lock(&self.report) =
            HostReport { device: self.name.clone(), up, routes, problem: seen.problem.clone() };
        self.seen = seen;
        Ok(())
    }
}

/// A reverse path filter that takes a peer on the link for a spoofer, because what is sent to him is routed into the
/// device: his ARP requests are not answered then.
fn strict_reverse_path(network: &Network) -> Option<String> {
    let value = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).ok()?;
        text.trim().parse::<u8>().ok()
    };
    // The larger one counts (Documentation/networking/ip-sysctl.rst of the kernel).
    let is_strict = |name: &str| value("all").max(value(name)) == Some(1);
    let outside = network.ports.iter().filter(|port| port.side == Side::Unprotected);
    let name = &outside.map(|port| &port.name).find(|name| is_strict(name))?;
    Some(format!(
        "peers in transport mode get no answer to ARP on {name}: expected sysctl net.ipv4.conf.{name}.rp_filter = 2, \
         found that the strict filter, 1, is in effect"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instances that never had a host path may have longer names than one that has.
    #[test]
    fn there_is_nothing_to_remove_of_an_instance_that_cannot_have_a_device() {
        let instance = "x".repeat(64);
        assert!(device::name(&instance).len() > device::NAME_LENGTH_MAX);
        remove(&instance).unwrap();
    }
}
