//! Steering: which frames the kernel gives to the engine, and what it may send in clear.
//!
//! Two programs of [`adit_xdp_prog`] are loaded for every interface, one on XDP, one on the egress hook. The second
//! holds what came by an interface without the first: one that is new, or not steered at all. Their links are
//! pinned under `BPFFS/adit/INSTANCE`, so they outlive this process: after a crash covered packets are dropped and
//! the others pass. Nothing here opens a hook except [`detach`].
//!
//! Every start loads new programs with new maps. [`Steering::switch`] puts them behind the existing links in one
//! step, so it comes last:
//!
//! ```text
//! open, load each port, set_cover, set_own_addresses, set_spis, insert each socket, switch each port
//! ```

mod bpf;
mod device;
mod error;
mod tables;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use adit_xdp_prog::{
    GUARD_PROGRAM, PORT_SIDE, SIDE_PROTECTED, SIDE_UNPROTECTED, STEER_OBJECT, STEER_PROGRAM, maps, vlan_key,
};
use aya::maps::{HashMap, MapData, PerCpuArray, XskMap};
use aya::programs::{Program, ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use rustix::fs::FlockOperation;

pub use self::error::SteeringError;
pub use self::tables::{CoverPrefix, SteeringTables};
pub use adit_xdp_prog::Outcome;

use self::bpf::{LinkStatus, Target};
use self::tables::{Tables, take_map};
use crate::route::Side;
use crate::wire::Spi;
use crate::wire::vlan::Tags;

/// Where the pins are, and how far attaching may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SteeringConfig {
    /// A mounted BPF file system that outlives the daemon, usually `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// Name of this gateway, unique on the host: letters, digits, `-` and `_`.
    pub instance: String,
    /// Replace another's XDP program.
    pub force: bool,
}

/// An interface to steer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// Name, for messages.
    pub name: String,
    /// Kernel index: what everything here is keyed by, since names move.
    pub ifindex: u32,
    /// Which side of the boundary.
    pub side: Side,
    /// VLANs of it that are ports of their own, and their sides.
    pub vlans: Vec<(Tags, Side)>,
}

/// The kernel programs' word for a side.
fn side_number(side: Side) -> u32 {
    match side {
        Side::Protected => SIDE_PROTECTED,
        Side::Unprotected => SIDE_UNPROTECTED,
    }
}

/// How XDP shall be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AttachMode {
    /// In the driver, and in the kernel's generic way where the driver cannot.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// The generic way.
    Skb,
}

/// How XDP is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's generic way, after the driver made a socket buffer.
    Skb,
}

impl XdpMode {
    /// The name users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Skb => "skb",
        }
    }
}

/// What [`Steering::switch`] came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachedPort {
    /// The mode in use. A link that was taken over keeps its mode, whatever was asked for: changing it would
    /// open the hook in between, and is done by [`detach`].
    pub mode: XdpMode,
    /// A link of an earlier process was switched to the new program, without a gap.
    pub taken_over: bool,
    /// Why the driver refused, when that is why the mode is [`XdpMode::Skb`].
    pub native_refused: Option<String>,
}

/// One of the two hooks, for [`Steering::try_frame`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// XDP, on arrival.
    Arrival,
    /// tc, on departure of what the gateway itself sends.
    Departure,
    /// tc, on departure of what the kernel forwards.
    Transit,
}

/// What a program said of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Given to the kernel, or on to the next program on the hook.
    Pass,
    /// Dropped.
    Drop,
    /// Given to the socket of the receive queue.
    Redirect,
}

struct LoadedPort {
    name: String,
    programs: Ebpf,
    sockets: XskMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
}

/// The hooks of one gateway. Dropping it leaves them as they are.
pub struct Steering {
    directory: PathBuf,
    force: bool,
    tables: Tables,
    ports: BTreeMap<u32, LoadedPort>,
    /// Held for the exclusive lock on the instance's directory.
    _lock: File,
}

impl Steering {
    /// Takes the instance's directory in the bpffs, and makes new, empty maps in it. Nothing is attached, and what
    /// an earlier process attached goes on as it was.
    ///
    /// # Errors
    /// No bpffs, a bad name, another process with the same instance, or a kernel that refuses the maps.
    pub fn open(config: &SteeringConfig) -> Result<Self, SteeringError> {
        let directory = instance_directory(&config.bpffs, &config.instance)?;
        create_directory(directory.parent().unwrap_or(&config.bpffs))?;
        create_directory(&directory)?;
        let lock = lock(&directory, &config.instance)?;
        create_directory(&directory.join("links"))?;
        create_directory(&directory.join("maps"))?;
        // Names only: programs that are attached keep their maps.
        for path in entries(&directory.join("maps"))? {
            fs::remove_file(&path).map_err(|error| SteeringError::File("remove", path, error))?;
        }
        remove_stale_links(&directory)?;
        let mut ebpf = load_object(&directory, SIDE_UNPROTECTED)?;
        Ok(Self {
            tables: Tables::take(&mut ebpf)?,
            directory,
            force: config.force,
            ports: BTreeMap::new(),
            _lock: lock,
        })
    }

    /// Whether an interface is nobody else's, asked before anything is changed. [`Steering::switch`] looks again.
    ///
    /// # Errors
    /// Another's XDP program is on the interface and `force` is not set.
    pub fn check_free(&self, port: &PortSpec) -> Result<(), SteeringError> {
        let device =
            device::query(port.ifindex).map_err(|error| SteeringError::Query(port.name.clone(), error))?;
        match device.program_id {
            Some(program_id) if !self.force && !holds(&self.directory, port.ifindex, program_id) => {
                Err(foreign(&self.directory, &port.name, port.ifindex, program_id))
            }
            _ => Ok(()),
        }
    }

    /// Loads the programs for an interface, again if it was loaded. Nothing is attached yet.
    ///
    /// # Errors
    /// The interface does not exist or is not Ethernet, or the kernel refuses the programs.
    pub fn load(&mut self, port: &PortSpec) -> Result<(), SteeringError> {
        let device =
            device::query(port.ifindex).map_err(|error| SteeringError::Query(port.name.clone(), error))?;
        if !device.is_ethernet {
            return Err(SteeringError::NotEthernet(port.name.clone()));
        }
        if !port.vlans.is_empty()
            && let Err(error) = device::keep_tags(&port.name)
        {
            return Err(SteeringError::Tags(port.name.clone(), error));
        }
        let mut programs = load_object(&self.directory, side_number(port.side))?;
        load_programs(&mut programs)?;
        let mut vlans: HashMap<MapData, u32, u32> = take_map(&mut programs, maps::VLANS)?;
        for (tags, side) in &port.vlans {
            vlans
                .insert(vlan_key(tags.outer, tags.inner), side_number(*side), 0)
                .map_err(|error| SteeringError::Map(maps::VLANS, error))?;
        }
        let loaded = LoadedPort {
            name: port.name.clone(),
            sockets: take_map(&mut programs, maps::XSKS)?,
            counters: take_map(&mut programs, maps::COUNTERS)?,
            programs,
        };
        self.ports.insert(port.ifindex, loaded);
        Ok(())
    }

    /// Forgets an interface that is gone, and its dead pins. One that still exists stays attached and closed.
    ///
    /// # Errors
    /// The pins cannot be read or removed.
    pub fn forget(&mut self, ifindex: u32) -> Result<(), SteeringError> {
        self.ports.remove(&ifindex);
        remove_stale_links(&self.directory)
    }

    /// Replaces the covers, also while attached: at no moment is a packet uncovered that both the old and the new
    /// covers hold.
    ///
    /// # Errors
    /// The kernel refuses; then too much is covered rather than too little.
    pub fn set_cover(&mut self, tables: &SteeringTables) -> Result<(), SteeringError> {
        self.tables.set_cover(tables)
    }

    /// Replaces the gateway's own addresses (of all interfaces, steered or not).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_own_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), SteeringError> {
        self.tables.set_own_addresses(addresses)
    }

    /// Replaces the SPIs of inbound ESP SAs.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_spis(&mut self, spis: impl IntoIterator<Item = Spi>) -> Result<(), SteeringError> {
        self.tables.set_spis(spis)
    }

    /// Steers an SPI to the engine: after its SA is published.
    ///
    /// # Errors
    /// The kernel refuses (there is room for a million).
    pub fn add_spi(&mut self, spi: Spi) -> Result<(), SteeringError> {
        self.tables.add_spi(spi)
    }

    /// Whether of the packets that no SA is for, and of those in clear to the gateway itself that the policy protects, one
    /// a second and processor reaches the engine, which drops it like the kernel and tells of it. Off until it is asked
    /// for.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn tell_of_drops(&mut self, on: bool) -> Result<(), SteeringError> {
        self.tables.tell_of_drops(on)
    }

    /// Drops an SPI in the kernel: before its SA is removed. Not an error when it is not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_spi(&mut self, spi: Spi) -> Result<(), SteeringError> {
        self.tables.remove_spi(spi)
    }

    /// Gives the frames of a receive queue to an AF_XDP socket bound to it.
    ///
    /// # Errors
    /// The port is not loaded, the queue is beyond 1023, or it is no AF_XDP socket with a fill ring.
    pub fn insert_socket(
        &mut self,
        ifindex: u32,
        queue: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), SteeringError> {
        self.port(ifindex)?
            .sockets
            .set(queue, socket, 0)
            .map_err(|error| SteeringError::Map(maps::XSKS, error))
    }

    /// Drops the engine's frames of a receive queue. Closing the socket does the same. Not an error when it is
    /// not there.
    ///
    /// # Errors
    /// The port is not loaded, or the queue is beyond 1023.
    pub fn remove_socket(&mut self, ifindex: u32, queue: u32) -> Result<(), SteeringError> {
        match self.port(ifindex)?.sockets.unset(queue) {
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            result => result.map_err(|error| SteeringError::Map(maps::XSKS, error)),
        }
    }

    /// Puts the loaded programs to work: behind the links an earlier process pinned, or attached anew. The guard
    /// comes first. What is attached when an error is returned stays attached.
    ///
    /// # Errors
    /// Another's XDP program is on the interface and `force` is not set, or the kernel refuses.
    pub fn switch(&mut self, ifindex: u32, mode: AttachMode) -> Result<AttachedPort, SteeringError> {
        let links = self.directory.join("links");
        let force = self.force;
        let port = self.ports.get(&ifindex).ok_or(SteeringError::NotLoaded(ifindex))?;
        let program = find_program::<SchedClassifier>(&port.programs, GUARD_PROGRAM)?
            .fd()
            .map_err(SteeringError::Program)?
            .as_fd();
        let path = links.join(format!("{ifindex}-guard"));
        if !take_over(&path, ifindex, |status| status.is_tcx, program)? {
            let link = bpf::link_create(program, ifindex, Target::TcxEgress).map_err(|error| {
                SteeringError::Attach(port.name.clone(), "the egress hook (tcx, Linux 6.6)", error)
            })?;
            pin(link, &path)?;
        }

        let program =
            find_program::<Xdp>(&port.programs, STEER_PROGRAM)?.fd().map_err(SteeringError::Program)?.as_fd();
        let path = links.join(format!("{ifindex}-xdp"));
        let query = || device::query(ifindex).map_err(|error| SteeringError::Query(port.name.clone(), error));
        if take_over(&path, ifindex, |status| status.is_xdp, program)? {
            let mode = query()?.mode.ok_or_else(|| SteeringError::NotAttached(port.name.clone()))?;
            return Ok(AttachedPort { mode, taken_over: true, native_refused: None });
        }
        let device = query()?;
        if let Some(program_id) = device.program_id {
            if !force {
                return Err(foreign(&self.directory, &port.name, ifindex, program_id));
            }
            remove_foreign(ifindex, program_id, device.mode)
                .map_err(|error| SteeringError::Attach(port.name.clone(), "another's XDP program", error))?;
        }
        let (link, mode, native_refused) = attach_xdp(program, ifindex, mode)
            .map_err(|(what, error)| SteeringError::Attach(port.name.clone(), what, error))?;
        pin(link, &path)?;
        Ok(AttachedPort { mode, taken_over: false, native_refused })
    }

    /// Frames of a port by outcome, since it was loaded, summed over CPUs; every outcome once.
    ///
    /// # Errors
    /// The port is not loaded.
    pub fn counters(&self, ifindex: u32) -> Result<Vec<(Outcome, u64)>, SteeringError> {
        let port = self.ports.get(&ifindex).ok_or(SteeringError::NotLoaded(ifindex))?;
        let sum = |outcome: Outcome| {
            let per_cpu = port.counters.get(&(outcome as u32), 0);
            per_cpu
                .map(|counts| (outcome, counts.iter().sum()))
                .map_err(|error| SteeringError::Map(maps::COUNTERS, error))
        };
        Outcome::ALL.iter().copied().map(sum).collect()
    }

    /// Runs a loaded program on `frame` inside the kernel, without an interface: it counts, nothing is sent.
    /// Frames are at least 14 bytes.
    ///
    /// # Errors
    /// The port is not loaded, or the kernel refuses the frame.
    pub fn try_frame(&self, ifindex: u32, hook: Hook, frame: &[u8]) -> Result<Verdict, SteeringError> {
        let port = self.ports.get(&ifindex).ok_or(SteeringError::NotLoaded(ifindex))?;
        let mut options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        // struct __sk_buff up to its `ingress_ifindex`: any but none.
        let mut forwarded = [0; 40];
        forwarded[36..].copy_from_slice(&ifindex.to_ne_bytes());
        if hook == Hook::Transit {
            options.ctx_in = Some(&forwarded);
        }
        let answer = match hook {
            Hook::Arrival => find_program::<Xdp>(&port.programs, STEER_PROGRAM)?.test_run(options),
            Hook::Departure | Hook::Transit => {
                find_program::<SchedClassifier>(&port.programs, GUARD_PROGRAM)?.test_run(options)
            }
        };
        const XDP_DROP: u32 = 1;
        const XDP_PASS: u32 = 2;
        const XDP_REDIRECT: u32 = 4;
        const TCX_NEXT: u32 = u32::MAX;
        const TCX_DROP: u32 = 2;
        match (hook, answer.map_err(SteeringError::Program)?.return_value) {
            (Hook::Arrival, XDP_PASS) | (Hook::Departure | Hook::Transit, TCX_NEXT) => Ok(Verdict::Pass),
            (Hook::Arrival, XDP_DROP) | (Hook::Departure | Hook::Transit, TCX_DROP) => Ok(Verdict::Drop),
            (Hook::Arrival, XDP_REDIRECT) => Ok(Verdict::Redirect),
            (_, other) => Err(SteeringError::Verdict(other)),
        }
    }

    /// Opens the hooks of this instance, as [`detach`], from the process that holds it.
    ///
    /// # Errors
    /// As [`detach`].
    pub fn detach(self) -> Result<usize, SteeringError> {
        remove_instance(&self.directory)
    }

    fn port(&mut self, ifindex: u32) -> Result<&mut LoadedPort, SteeringError> {
        self.ports.get_mut(&ifindex).ok_or(SteeringError::NotLoaded(ifindex))
    }
}

impl Drop for Steering {
    /// One that never attached anything leaves nothing behind.
    fn drop(&mut self) {
        if entries(&self.directory.join("links")).is_ok_and(|links| links.is_empty())
            && let Err(error) = remove_instance(&self.directory)
        {
            tracing::debug!(%error, "an instance without hooks");
        }
    }
}

/// Opens the hooks of an instance whose daemon has ended: covered traffic is then the kernel's, in clear. Returns
/// how many were attached.
///
/// # Errors
/// No bpffs, a bad name, a daemon that still runs, or the kernel refuses.
pub fn detach(bpffs: &Path, instance: &str) -> Result<usize, SteeringError> {
    let directory = instance_directory(bpffs, instance)?;
    if !directory.exists() {
        return Ok(0);
    }
    let _lock = lock(&directory, instance)?;
    remove_instance(&directory)
}

fn remove_instance(directory: &Path) -> Result<usize, SteeringError> {
    let mut opened = 0;
    for path in entries(&directory.join("links"))? {
        let link =
            bpf::open_pinned(&path).map_err(|error| SteeringError::File("open", path.clone(), error))?;
        // Removing the name alone would detach some time later, and not at all while somebody holds the link.
        match bpf::link_detach(link.as_fd()) {
            Ok(()) => opened += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(SteeringError::File("detach", path, error)),
        }
        fs::remove_file(&path).map_err(|error| SteeringError::File("remove", path, error))?;
    }
    for path in entries(&directory.join("maps"))? {
        fs::remove_file(&path).map_err(|error| SteeringError::File("remove", path, error))?;
    }
    for path in [directory.join("links"), directory.join("maps"), directory.to_path_buf()] {
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SteeringError::File("remove", path, error));
            }
            _ => {}
        }
    }
    Ok(opened)
}

/// Whether the program on the interface is of the instance of this directory. (An index alone says nothing: each
/// network namespace has its own, and a bpffs is for all.)
fn holds(directory: &Path, ifindex: u32, program_id: u32) -> bool {
    let link = bpf::open_pinned(&directory.join("links").join(format!("{ifindex}-xdp")));
    let status = link.and_then(|link| bpf::link_status(link.as_fd()));
    status.is_ok_and(|status| status.is_xdp && status.program_id == program_id)
}

/// Somebody else's program is on an interface: another instance's, if one in the same bpffs has a link there.
fn foreign(directory: &Path, name: &str, ifindex: u32, program_id: u32) -> SteeringError {
    let instances = directory.parent().map(entries).and_then(Result::ok).unwrap_or_default();
    let holder = instances.iter().find(|other| *other != directory && holds(other, ifindex, program_id));
    let holder = holder.and_then(|other| other.file_name()).map(|name| name.to_string_lossy().into_owned());
    SteeringError::ForeignProgram(name.to_owned(), program_id, holder)
}

/// Switches the link pinned at `path` to `program`. False when there is none that lives; a dead one is removed.
fn take_over(
    path: &Path,
    ifindex: u32,
    is_ours: impl Fn(&LinkStatus) -> bool,
    program: BorrowedFd<'_>,
) -> Result<bool, SteeringError> {
    let failed = |what| move |error| SteeringError::File(what, path.to_path_buf(), error);
    let link = match bpf::open_pinned(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("open")(error)),
    };
    let status = bpf::link_status(link.as_fd()).map_err(failed("read"))?;
    if is_ours(&status) && status.ifindex == ifindex {
        match bpf::link_update(link.as_fd(), program) {
            Ok(()) => return Ok(true),
            // The interface went away, or somebody detached the link by force.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(failed("switch")(error)),
        }
    }
    fs::remove_file(path).map_err(failed("remove"))?;
    Ok(false)
}

/// In the driver if it can and may, else the generic way. The error says which of them failed.
fn attach_xdp(
    program: BorrowedFd<'_>,
    ifindex: u32,
    mode: AttachMode,
) -> Result<(OwnedFd, XdpMode, Option<String>), (&'static str, io::Error)> {
    let mut refused = None;
    if mode != AttachMode::Skb {
        match bpf::link_create(program, ifindex, Target::XdpNative) {
            Ok(link) => return Ok((link, XdpMode::Native, None)),
            Err(error) if mode == AttachMode::Native => return Err(("XDP in native mode", error)),
            Err(error) => refused = Some(error.to_string()),
        }
    }
    match bpf::link_create(program, ifindex, Target::XdpSkb) {
        Ok(link) => Ok((link, XdpMode::Skb, refused)),
        Err(error) => Err(("XDP in skb mode", error)),
    }
}

fn remove_foreign(ifindex: u32, program_id: u32, mode: Option<XdpMode>) -> io::Result<()> {
    match bpf::find_xdp_link(ifindex, program_id)? {
        Some(link) => bpf::link_detach(link.as_fd()),
        None => device::remove_xdp(ifindex, mode),
    }
}

/// Pins a link and lets go of it: from here on only the pin holds it.
fn pin(link: OwnedFd, path: &Path) -> Result<(), SteeringError> {
    bpf::pin(link.as_fd(), path).map_err(|error| SteeringError::File("pin", path.to_path_buf(), error))
}

/// Removes pins whose interface is gone; their links do nothing any more.
fn remove_stale_links(directory: &Path) -> Result<(), SteeringError> {
    for path in entries(&directory.join("links"))? {
        let status = bpf::open_pinned(&path).and_then(|link| bpf::link_status(link.as_fd()));
        if status.map_err(|error| SteeringError::File("read", path.clone(), error))?.ifindex == 0 {
            fs::remove_file(&path).map_err(|error| SteeringError::File("remove", path, error))?;
        }
    }
    Ok(())
}

/// Parses the object and makes its maps; those pinned under `directory` are shared with what is loaded already.
fn load_object(directory: &Path, side: u32) -> Result<Ebpf, SteeringError> {
    let mut loader = EbpfLoader::new();
    loader.btf(None).override_global(PORT_SIDE, &side, true);
    for name in maps::SHARED {
        loader.map_pin_path(name, directory.join("maps").join(name));
    }
    loader.load(STEER_OBJECT).map_err(SteeringError::Object)
}

/// Has the kernel verify and take both programs, each on a thread of its own: that is most of what a start takes, and a
/// gateway is closed as long.
fn load_programs(programs: &mut Ebpf) -> Result<(), SteeringError> {
    std::thread::scope(|scope| {
        let loads: Vec<_> = programs
            .programs_mut()
            .map(|(_, program)| {
                scope.spawn(move || match program {
                    Program::Xdp(steer) => steer.load(),
                    Program::SchedClassifier(guard) => guard.load(),
                    _ => Ok(()),
                })
            })
            .collect();
        loads.into_iter().try_for_each(|load| load.join().expect("a panic ends the process"))
    })
    .map_err(SteeringError::Program)
}

fn find_program<'p, P>(programs: &'p Ebpf, name: &'static str) -> Result<&'p P, SteeringError>
where
    &'p P: TryFrom<&'p Program, Error = ProgramError>,
{
    let program = programs.program(name).ok_or(SteeringError::NoSuchProgram(name))?;
    program.try_into().map_err(SteeringError::Program)
}

/// `BPFFS/adit/INSTANCE`, once it is sure that the first is one and the last is a plain name.
fn instance_directory(bpffs: &Path, instance: &str) -> Result<PathBuf, SteeringError> {
    const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
    // A bpffs refuses names with dots, and a name must not climb out of the directory.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if instance.is_empty() || instance.len() > 64 || !instance.bytes().all(plain) {
        return Err(SteeringError::InstanceName(instance.to_string()));
    }
    let status = rustix::fs::statfs(bpffs)
        .map_err(|error| SteeringError::NotBpffs(bpffs.into(), Some(error.into())))?;
    if status.f_type as u32 != BPF_FS_MAGIC {
        return Err(SteeringError::NotBpffs(bpffs.into(), None));
    }
    Ok(bpffs.join("adit").join(instance))
}

fn create_directory(path: &Path) -> Result<(), SteeringError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(SteeringError::File("create", path.to_path_buf(), error))
        }
        _ => Ok(()),
    }
}

/// One process per instance: two would switch each other's links.
fn lock(directory: &Path, instance: &str) -> Result<File, SteeringError> {
    let file =
        File::open(directory).map_err(|error| SteeringError::File("open", directory.to_path_buf(), error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SteeringError::InUse(instance.to_string())),
        Err(error) => Err(SteeringError::File("lock", directory.to_path_buf(), error.into())),
    }
}

/// Paths in a directory; none when it does not exist.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, SteeringError> {
    let failed = |error| SteeringError::File("read", directory.to_path_buf(), error);
    match fs::read_dir(directory) {
        Ok(entries) => {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}
