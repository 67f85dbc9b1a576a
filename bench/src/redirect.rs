//! A small XDP program that gives frames of an interface to AF_XDP sockets, for equipment and tests that need
//! sockets without the steering program. A few instructions, loaded with bpf(2) directly: no compiler, no object
//! file.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// How the program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the stack, for drivers without XDP.
    Skb,
}

/// An attached program and its XSKMAP; both go when it is dropped.
pub struct Redirect {
    map: OwnedFd,
    _link: OwnedFd,
}

/// Which frames go to the sockets; the kernel keeps the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Take {
    /// All of them. A queue without a socket drops.
    Everything,
    /// UDP and ESP over IPv4 without options or IPv6 without extension headers: the kernel still answers ARP and
    /// neighbour discovery.
    Traffic,
}

/// Command numbers and constants of linux/bpf.h and linux/if_link.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is a prefix of union bpf_attr for this command, with its true size; every address in
    // it is of memory that lives until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_long)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: bpf(2) just returned this descriptor; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// One instruction of struct bpf_insn.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(destination | source << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

fn program(map: RawFd, take: Take) -> Vec<u64> {
    const PASS: i32 = 2;
    const UDP: i32 = 17;
    const ESP: i32 = 50;
    let select = [
        // r2 = data; r3 = data_end; unless data + 54 <= data_end goto pass
        instruction(0x61, 2, 1, 0, 0),
        instruction(0x61, 3, 1, 4, 0),
        instruction(0xbf, 4, 2, 0, 0),
        instruction(0x07, 4, 0, 0, 54),
        instruction(0x2d, 4, 3, 14, 0),
        // IPv4: r5 = protocol; IPv6: r5 = next header; else goto pass
        instruction(0x69, 4, 2, 12, 0),
        instruction(0x55, 4, 0, 2, i32::from(0x0800u16.to_be())),
        instruction(0x71, 5, 2, 23, 0),
        instruction(0x05, 0, 0, 2, 0),
        instruction(0x55, 4, 0, 9, i32::from(0x86ddu16.to_be())),
        instruction(0x71, 5, 2, 20, 0),
        // unless r5 is one of them goto pass
        instruction(0x15, 5, 0, 1, UDP),
        instruction(0x55, 5, 0, 6, ESP),
    ];
    let redirect = [
        // return bpf_redirect_map(map, ctx->rx_queue_index, XDP_DROP)
        instruction(0x61, 2, 1, 16, 0),
        instruction(0x18, 1, 1, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(0xb7, 3, 0, 0, 1),
        instruction(0x85, 0, 0, 0, 51),
        instruction(0x95, 0, 0, 0, 0),
        // pass:
        instruction(0xb7, 0, 0, 0, PASS),
        instruction(0x95, 0, 0, 0, 0),
    ];
    match take {
        // Unreachable instructions do not verify: without the selection nothing jumps to `pass`.
        Take::Everything => redirect[..6].to_vec(),
        Take::Traffic => [&select[..], &redirect[..]].concat(),
    }
}

impl Redirect {
    /// Loads the program and attaches it to `interface`.
    ///
    /// # Errors
    /// No such interface, another program is attached, the driver has no XDP, no privilege.
    pub fn attach(interface: &str, mode: AttachMode, take: Take) -> io::Result<Self> {
        let map = owned(bpf(
            BPF_MAP_CREATE,
            &mut MapCreate { map_type: BPF_MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, max_entries: 64 },
        )?);
        let instructions = program(map.as_raw_fd(), take);
        let program = owned(bpf(
            BPF_PROG_LOAD,
            &mut ProgramLoad {
                program_type: BPF_PROG_TYPE_XDP,
                instruction_count: instructions.len() as u32,
                instructions: instructions.as_ptr() as u64,
                license: c"MIT".as_ptr() as u64,
                flags: BPF_F_XDP_HAS_FRAGS,
                name: *b"redirect_all\0\0\0\0",
                expected_attach_type: BPF_XDP,
                ..Default::default()
            },
        )?);
        let name = CString::new(interface)?;
        // SAFETY: a NUL-terminated name.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = if mode == AttachMode::Native { XDP_FLAGS_DRV_MODE } else { XDP_FLAGS_SKB_MODE };
        let link = owned(bpf(
            BPF_LINK_CREATE,
            &mut LinkCreate {
                program: program.as_raw_fd() as u32,
                interface: index,
                attach_type: BPF_XDP,
                flags,
            },
        )?);
        Ok(Self { map, _link: link })
    }

    /// Gives the frames of `queue` to `socket`.
    ///
    /// # Errors
    /// Not an AF_XDP socket.
    pub fn insert(&self, queue: u32, socket: RawFd) -> io::Result<()> {
        self.element(BPF_MAP_UPDATE_ELEM, queue, socket as u32)
    }

    /// Takes the socket of `queue` out.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, queue: u32) -> io::Result<()> {
        self.element(BPF_MAP_DELETE_ELEM, queue, 0)
    }

    fn element(&self, command: libc::c_long, key: u32, value: u32) -> io::Result<()> {
        let mut element = MapElement {
            map: self.map.as_raw_fd() as u32,
            key: (&raw const key) as u64,
            value: if command == BPF_MAP_DELETE_ELEM { 0 } else { (&raw const value) as u64 },
            ..Default::default()
        };
        bpf(command, &mut element).map(|_| ())
    }
}
