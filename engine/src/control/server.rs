//! The control socket: varlink (NUL-terminated JSON) over a unix socket, for clients of every temper.
//!
//! The framing is written out here rather than taken from a varlink library: request bytes hold keys, so they
//! must lie in one buffer that never moves and is wiped, and must not pass a library's trace log; and each
//! limit below must hold before a message is complete.
//!
//! One thread, one task a connection. A client can be slow, silent, endless or gone; it is bounded by
//! [`MESSAGE_LIMIT`], by [`READ_LIMIT`] for a message once begun, by [`WRITE_LIMIT`] for every piece of an
//! answer, and by the number of connections, of all and of its uid. When they are used up, a connection of
//! the uid makes room: one that never said anything before one that did, the longest idle first. Workers know
//! nothing of all this.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use zeroize::{Zeroize as _, Zeroizing};

use super::apply::Control;
use super::events::Event;
use super::group;
use super::lifetimes;
use super::protocol::{self, Asked, Cursor, ErrorReply, MESSAGE_LIMIT, PIECE, Peer, Request};

/// For a message, from its first byte to its NUL.
pub const READ_LIMIT: Duration = Duration::from_secs(5);
/// For a piece of an answer.
pub const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// Connections of everybody together.
pub const CONNECTIONS: usize = 64;
/// Connections of one uid; root and the daemon's own uid have more.
pub const CONNECTIONS_OF_A_UID: usize = 16;
const CONNECTIONS_OF_ROOT: usize = 48;

/// The running server; dropping it ends it and removes the socket.
pub struct Server {
    path: PathBuf,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds `path` and serves on a thread of its own. `socket_group`: whose members may read.
    ///
    /// # Errors
    /// The path cannot be bound, another daemon answers on it, or the group does not exist.
    pub fn start(control: Arc<Control>, path: &Path, socket_group: Option<&str>) -> io::Result<Self> {
        let gid = match socket_group {
            Some(name) => {
                Some(group::id(name).ok_or_else(|| io::Error::other(format!("no group {name:?}")))?)
            }
            None => None,
        };
        let listener = bind(path, gid)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Changes come one after another anyway.
            .max_blocking_threads(4)
            .build()?;
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(&runtime, async {
                match UnixListener::from_std(listener) {
                    Ok(listener) => tokio::select! {
                        () = accept(listener, control.clone(), gid) => {}
                        () = keep_time(&control) => {}
                        () = stopped.notified() => {}
                    },
                    Err(error) => tracing::error!(%error, "control socket"),
                }
            });
        })?;
        Ok(Self { path: path.to_owned(), stop, thread: Some(thread) })
    }
}

/// Lifetimes in seconds end within one of these.
const TICK: Duration = Duration::from_secs(1);

async fn keep_time(control: &Arc<Control>) {
    let mut retiring: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        tokio::time::sleep(TICK).await;
        let now = lifetimes::now();
        control.collect_drops();
        // It waits for other changes and for workers; time does not.
        if control.pass_time(now) && retiring.as_ref().is_none_or(|task| task.is_finished()) {
            let control = control.clone();
            retiring = Some(tokio::task::spawn_blocking(move || control.retire(now)));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic aborts the process, so there is nothing to learn here.
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds beside `path`, sets owner and mode, and only then moves the socket into place.
fn bind(path: &Path, gid: Option<u32>) -> io::Result<StdListener> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        let mode = if gid.is_some() { 0o750 } else { 0o700 };
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(directory)?;
        std::os::unix::fs::chown(directory, None, gid)?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(metadata) => {
            use std::os::unix::fs::FileTypeExt as _;
            if !metadata.file_type().is_socket() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is no socket"));
            }
            // Stale, or another daemon's?
            if StdStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another aditd answers on this socket"));
            }
        }
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let listener = StdListener::bind(&temporary)?;
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    let placed = std::os::unix::fs::chown(&temporary, None, gid)
        .and_then(|()| std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode)))
        .and_then(|()| listener.set_nonblocking(true))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(listener)
}

/// A connection as the others see it.
struct Seat {
    uid: u32,
    idle_since: Option<Instant>,
    has_spoken: bool,
    leave: Rc<Notify>,
}

#[derive(Default)]
struct Seats {
    taken: HashMap<u64, Seat>,
    next: u64,
}

impl Seats {
    /// Makes room for one more of `uid`; false when there is none to be made.
    fn room(&mut self, uid: u32, limit_of_uid: usize) -> bool {
        let own = self.taken.values().filter(|seat| seat.uid == uid).count();
        if own >= limit_of_uid {
            return self.evict(|seat| seat.uid == uid);
        }
        if self.taken.len() < CONNECTIONS {
            return true;
        }
        let mut of_uid: HashMap<u32, usize> = HashMap::new();
        self.taken.values().for_each(|seat| *of_uid.entry(seat.uid).or_default() += 1);
        let most = of_uid.into_iter().max_by_key(|(_, count)| *count).map(|(uid, _)| uid);
        self.evict(|seat| Some(seat.uid) == most)
    }

    fn evict(&mut self, whose: impl Fn(&Seat) -> bool) -> bool {
        let idle = self
            .taken
            .iter()
            .filter(|(_, seat)| whose(seat))
            // Who only connects, however fast, crowds out others who do no more, and nobody between two calls.
            .filter_map(|(id, seat)| Some((seat.has_spoken, seat.idle_since?, *id)));
        let Some((.., id)) = idle.min() else { return false };
        if let Some(seat) = self.taken.remove(&id) {
            seat.leave.notify_one();
        }
        true
    }
}

async fn accept(listener: UnixListener, control: Arc<Control>, gid: Option<u32>) {
    let own = rustix::process::geteuid().as_raw();
    let seats = Rc::new(RefCell::new(Seats::default()));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, _)) => match identify(&stream, own, gid) {
                Ok(peer) => (stream, peer),
                Err(_) => continue,
            },
            Err(error) => {
                // Out of descriptors, most likely: the clients that are there go on, and may leave.
                tracing::warn!(%error, "control socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let limit = if peer.uid == 0 || peer.uid == own { CONNECTIONS_OF_ROOT } else { CONNECTIONS_OF_A_UID };
        if !seats.borrow_mut().room(peer.uid, limit) {
            let _ = stream.try_write(&ErrorReply::busy(limit.min(CONNECTIONS)).message());
            continue;
        }
        let leave = Rc::new(Notify::new());
        let id = {
            let mut seats = seats.borrow_mut();
            seats.next += 1;
            let id = seats.next;
            let idle_since = Some(Instant::now());
            let seat = Seat { uid: peer.uid, idle_since, has_spoken: false, leave: leave.clone() };
            seats.taken.insert(id, seat);
            id
        };
        let (seats, control) = (seats.clone(), control.clone());
        tokio::task::spawn_local(async move {
            let idle = |idle: bool| {
                if let Some(seat) = seats.borrow_mut().taken.get_mut(&id) {
                    seat.idle_since = idle.then(Instant::now);
                    seat.has_spoken |= !idle;
                }
            };
            tokio::select! {
                _ = serve(stream, peer, &control, &idle) => {}
                () = leave.notified() => {}
            }
            seats.borrow_mut().taken.remove(&id);
        });
    }
}

/// SO_PEERCRED. Connecting already needs the socket's mode; this also holds for descriptors that were passed on.
fn identify(stream: &UnixStream, own: u32, gid: Option<u32>) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let uid = credentials.uid();
    let changes = uid == 0 || uid == own;
    let reads = changes || gid.is_some_and(|gid| credentials.gid() == gid || group::has_member(gid, uid));
    Ok(Peer { uid, pid: credentials.pid().unwrap_or(0), reads, changes })
}

/// Serves one client until it leaves, or until it is shown the door.
async fn serve(
    mut stream: UnixStream,
    peer: Peer,
    control: &Arc<Control>,
    idle: &impl Fn(bool),
) -> io::Result<()> {
    loop {
        idle(true);
        stream.readable().await?;
        idle(false);
        // One allocation that never grows: no copy of a key is left behind. Idle clients hold none.
        let mut buffer = Zeroizing::new(vec![0; MESSAGE_LIMIT + 1]);
        let mut filled = 0;
        loop {
            let length = match next_message(&stream, &mut buffer, &mut filled).await? {
                Next::Message(length) => length,
                Next::Nothing => break,
                Next::End => return Ok(()),
                Next::Bad(reason) => {
                    return send(&mut stream, &ErrorReply::bad_message(reason).message()).await;
                }
            };
            let asked = protocol::read(&buffer[..length], peer);
            buffer[..length].zeroize();
            match asked {
                Ok(Asked { request: Ok(Request::Monitor { drops }), more: true, oneway: false, .. }) => {
                    drop(buffer);
                    return monitor(&mut stream, control, drops, idle).await;
                }
                Ok(asked) => answer(&mut stream, asked, peer, control).await?,
                Err(reply) => return send(&mut stream, &reply.message()).await,
            }
            // Messages may come several at a time.
            buffer.copy_within(length + 1..filled, 0);
            filled -= length + 1;
            if filled == 0 {
                break;
            }
        }
    }
}

/// What came.
enum Next {
    /// A message of this length, without its NUL, at the buffer's start.
    Message(usize),
    /// Not a byte: readiness was a false alarm, and no clock runs.
    Nothing,
    /// The client has left.
    End,
    /// No message, and why.
    Bad(&'static str),
}

async fn next_message(stream: &UnixStream, buffer: &mut [u8], filled: &mut usize) -> io::Result<Next> {
    let deadline = tokio::time::Instant::now() + READ_LIMIT;
    let mut searched = 0;
    loop {
        if let Some(position) = buffer[searched..*filled].iter().position(|byte| *byte == 0) {
            return Ok(Next::Message(searched + position));
        }
        searched = *filled;
        if *filled == buffer.len() {
            return Ok(Next::Bad("expected at most 65536 bytes, found more"));
        }
        match stream.try_read(&mut buffer[*filled..]) {
            Ok(0) => return Ok(Next::End),
            Ok(count) => *filled += count,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if *filled == 0 => return Ok(Next::Nothing),
            Err(_) => {
                if tokio::time::timeout_at(deadline, stream.readable()).await.is_err() {
                    return Ok(Next::Bad("expected the message's NUL within 5 seconds"));
                }
            }
        }
    }
}

async fn answer(stream: &mut UnixStream, asked: Asked, peer: Peer, control: &Arc<Control>) -> io::Result<()> {
    let Asked { request, method, more, oneway } = asked;
    let reply = match request {
        Ok(Request::Read(read)) => read.answer(control),
        Ok(Request::List(list)) if more && !oneway => {
            let mut cursor = Cursor::new(list);
            loop {
                match cursor.piece(control, PIECE) {
                    Ok((piece, true)) => break piece,
                    Ok((piece, false)) => send(stream, &piece).await?,
                    Err(error) => break error.message(),
                }
            }
        }
        Ok(Request::List(list)) => Cursor::new(list).whole(control).unwrap_or_else(|error| error.message()),
        Ok(Request::Monitor { .. }) => protocol::reply(&Event::listening()),
        Ok(Request::Change(change)) => {
            let control = control.clone();
            let done = tokio::task::spawn_blocking(move || change.perform(&control)).await?;
            let (uid, pid) = (peer.uid, peer.pid);
            match done {
                Ok(change) => {
                    let (added, removed, generation) = (change.added, change.removed, change.generation);
                    tracing::info!(uid, pid, %method, generation, added, removed, wiped = change.wiped, "changed");
                    protocol::reply(&change)
                }
                Err(problems) => {
                    tracing::warn!(uid, pid, %method, problems = problems.0.len(), "refused, nothing changed");
                    ErrorReply::from(problems).message()
                }
            }
        }
        Err(error) => {
            tracing::debug!(uid = peer.uid, pid = peer.pid, ?method, "refused");
            error.message()
        }
    };
    if oneway { Ok(()) } else { send(stream, &reply).await }
}

/// Tells a client what happens until it leaves or says something. Between events its connection is idle like any
/// other, and makes room when there is none.
async fn monitor(
    stream: &mut UnixStream,
    control: &Control,
    drops: bool,
    idle: &impl Fn(bool),
) -> io::Result<()> {
    let mut listener = control.events.listen(drops);
    let mut event = Event::listening();
    loop {
        send(stream, &protocol::piece_of(&event)).await?;
        idle(true);
        event = tokio::select! {
            next = listener.next() => match next {
                Some(next) => next,
                None => return Ok(()),
            },
            () = heard(stream) => return Ok(()),
        };
        idle(false);
    }
}

/// Until the client says something, or leaves.
async fn heard(stream: &UnixStream) {
    loop {
        let ready = stream.readable().await;
        // Readiness may be older than the last read.
        let said = stream.try_read(&mut [0]).map_err(|error| error.kind());
        if ready.is_err() || said != Err(io::ErrorKind::WouldBlock) {
            return;
        }
    }
}

async fn send(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    match timeout(WRITE_LIMIT, stream.write_all(bytes)).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
