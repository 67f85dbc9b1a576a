//! The five link commands of bpf(2). aya has them, but falls back in silence to an attachment by netlink that
//! cannot be pinned, hides the interface of a link, and detaches on drop: each the opposite of what fails closed.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// Numbers of <linux/bpf.h>: kernel ABI.
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;
const BPF_LINK_GET_NEXT_ID: u32 = 31;
const BPF_LINK_DETACH: u32 = 34;

const BPF_XDP: u32 = 37;
const BPF_TCX_EGRESS: u32 = 47;
/// First of the programs on the hook, so that nobody's "accept" ends the chain before ours.
const BPF_F_BEFORE: u32 = 1 << 3;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// Where a program is to be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    XdpNative,
    XdpSkb,
    TcxEgress,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkStatus {
    /// Whether it holds an XDP program (else one on tcx, or something else).
    pub(super) is_xdp: bool,
    /// The same for tcx.
    pub(super) is_tcx: bool,
    /// The program.
    pub(super) program_id: u32,
    /// The interface; 0 when it is gone.
    pub(super) ifindex: u32,
}

/// The start of `union bpf_attr`, as large as the commands here read. The kernel takes what follows as zero.
#[repr(C, align(8))]
#[derive(Default)]
struct Attributes {
    words: [u32; 16],
}

impl Attributes {
    fn of(words: &[u32]) -> Self {
        let mut this = Self::default();
        this.words[..words.len()].copy_from_slice(words);
        this
    }

    /// Stores a pointer in the 64 bits that begin at word `at`.
    fn set_pointer(&mut self, at: usize, pointer: *const u8) {
        let bytes = (pointer as u64).to_ne_bytes();
        self.words[at] = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.words[at + 1] = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    }
}

/// # Safety
/// Pointers in `attributes` are what `command` expects, and valid during the call.
unsafe fn bpf(command: u32, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most the given size of `attributes`; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<Attributes>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// # Safety
/// As [`bpf`], and `command` answers with a new file descriptor.
unsafe fn bpf_open(command: u32, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise is the same.
    let fd = unsafe { bpf(command, attributes)? };
    // SAFETY: the command answered with a descriptor that nobody else knows yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program; it stays while the link is held or pinned.
pub(super) fn link_create(program: BorrowedFd<'_>, ifindex: u32, target: Target) -> io::Result<OwnedFd> {
    let (attach_type, flags) = match target {
        Target::XdpNative => (BPF_XDP, XDP_FLAGS_DRV_MODE),
        Target::XdpSkb => (BPF_XDP, XDP_FLAGS_SKB_MODE),
        Target::TcxEgress => (BPF_TCX_EGRESS, BPF_F_BEFORE),
    };
    let mut attributes = Attributes::of(&[program.as_raw_fd() as u32, ifindex, attach_type, flags]);
    // SAFETY: no pointers; the command answers with a descriptor.
    unsafe { bpf_open(BPF_LINK_CREATE, &mut attributes) }
}

/// Replaces the program of a link, atomically. `ENOLINK` when its interface is gone.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::of(&[link.as_raw_fd() as u32, program.as_raw_fd() as u32]);
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Detaches a link, whoever else holds it.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::of(&[link.as_raw_fd() as u32]);
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// What a link is.
pub(super) fn link_status(link: BorrowedFd<'_>) -> io::Result<LinkStatus> {
    // struct bpf_link_info: type, id, prog_id, padding, then the union, whose first word is the interface for both.
    let mut answer = [0u32; 32];
    let mut attributes = Attributes::of(&[link.as_raw_fd() as u32, size_of_val(&answer) as u32]);
    attributes.set_pointer(2, answer.as_mut_ptr().cast());
    // SAFETY: the pointer is to `answer`, of the size given beside it.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    let [kind, _id, program_id, _, ifindex, ..] = answer;
    Ok(LinkStatus {
        is_xdp: kind == BPF_LINK_TYPE_XDP,
        is_tcx: kind == BPF_LINK_TYPE_TCX,
        program_id,
        ifindex,
    })
}

/// Gives a link a name in a bpffs, under which it outlives us.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::of(&[0, 0, object.as_raw_fd() as u32]);
    attributes.set_pointer(0, path.as_ptr().cast());
    // SAFETY: the pointer is to a NUL-terminated path that lives until the end of this function.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what is pinned.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::default();
    attributes.set_pointer(0, path.as_ptr().cast());
    // SAFETY: as in `pin`; the command answers with a descriptor.
    unsafe { bpf_open(BPF_OBJ_GET, &mut attributes) }
}

/// The link that attaches program `program_id` to the XDP hook of `ifindex`, if a link does.
pub(super) fn find_xdp_link(ifindex: u32, program_id: u32) -> io::Result<Option<OwnedFd>> {
    let mut id = 0;
    loop {
        let mut attributes = Attributes::of(&[id]);
        // SAFETY: no pointers.
        match unsafe { bpf(BPF_LINK_GET_NEXT_ID, &mut attributes) } {
            Ok(_) => id = attributes.words[1],
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: no pointers; the command answers with a descriptor. A link may be gone by now.
        let Ok(link) = (unsafe { bpf_open(BPF_LINK_GET_FD_BY_ID, &mut Attributes::of(&[id])) }) else {
            continue;
        };
        let status = link_status(std::os::fd::AsFd::as_fd(&link))?;
        if status.is_xdp && status.ifindex == ifindex && status.program_id == program_id {
            return Ok(Some(link));
        }
    }
}
