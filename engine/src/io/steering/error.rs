//! What can go wrong, in words for the operator.

use std::fmt;
use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why steering failed. Whatever it was, hooks that were attached stay attached.
#[derive(Debug)]
pub enum SteeringError {
    /// The path is no BPF file system, or cannot be looked at.
    NotBpffs(PathBuf, Option<io::Error>),
    /// An instance name that is no plain name.
    InstanceName(String),
    /// Another process has the instance.
    InUse(String),
    /// A verb, the path in the bpffs, and what the kernel said.
    File(&'static str, PathBuf, io::Error),
    /// The kernel did not tell about the interface with this name.
    Query(String, io::Error),
    /// Interface, and why its driver goes on taking VLAN tags out of frames.
    Tags(String, io::Error),
    /// The interface's frames have no Ethernet header.
    NotEthernet(String),
    /// The object cannot be read, or its maps not made.
    Object(EbpfError),
    /// The object lacks a map.
    NoSuchMap(&'static str),
    /// The object lacks a program.
    NoSuchProgram(&'static str),
    /// A program that the kernel refuses to load or run.
    Program(ProgramError),
    /// A map, and what the kernel refused.
    Map(&'static str, MapError),
    /// No port with this index was loaded.
    NotLoaded(u32),
    /// Interface, the id of somebody else's XDP program on it, and the other instance whose it is, if it is one's.
    ForeignProgram(String, u32, Option<String>),
    /// Interface, hook, and what the kernel said.
    Attach(String, &'static str, io::Error),
    /// The interface has no XDP program though its link was just switched.
    NotAttached(String),
    /// A program returned what it never returns.
    Verdict(u32),
}

impl fmt::Display for SteeringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBpffs(path, error) => {
                let path = path.display();
                write!(f, "{path} is not a BPF file system")?;
                if let Some(error) = error {
                    write!(f, " ({error})")?;
                }
                write!(f, "; mount one that outlives the daemon: mount -t bpf bpf {path}")
            }
            Self::InstanceName(name) => {
                write!(f, "instance name {name:?}: 1 to 64 letters, digits, '-' or '_' are expected")
            }
            Self::InUse(name) => write!(f, "instance {name} belongs to a running process"),
            Self::File(verb, path, error) => write!(f, "cannot {verb} {}: {error}", path.display()),
            Self::Query(name, error) => write!(f, "interface {name}: {error}"),
            Self::Tags(name, error) => write!(
                f,
                "interface {name} takes VLAN tags out of frames before XDP sees them, and could not be told not to ({error}): ethtool -K {name} rxvlan off"
            ),
            Self::NotEthernet(name) => write!(f, "interface {name} is not Ethernet"),
            Self::Object(error) => write!(f, "the kernel programs cannot be prepared: {}", Chain(error)),
            Self::NoSuchMap(name) => write!(f, "the kernel programs have no map {name}"),
            Self::NoSuchProgram(name) => write!(f, "there is no kernel program {name}"),
            Self::Program(error) => write!(f, "kernel program: {}", Chain(error)),
            Self::Map(name, error) => write!(f, "map {name}: {}", Chain(error)),
            Self::NotLoaded(ifindex) => write!(f, "no kernel programs are loaded for interface {ifindex}"),
            Self::ForeignProgram(name, id, None) => write!(
                f,
                "interface {name} already has an XDP program (id {id}) that is not this instance's; it is replaced with --force"
            ),
            Self::ForeignProgram(name, _, Some(instance)) => write!(
                f,
                "interface {name} is steered by instance {instance}; end that and run adit detach --instance {instance}, or start with --force"
            ),
            Self::Attach(name, hook, error) => write!(f, "interface {name}, {hook}: {error}"),
            Self::NotAttached(name) => {
                write!(f, "interface {name} lost its XDP program while it was switched")
            }
            Self::Verdict(value) => write!(f, "a kernel program returned {value}"),
        }
    }
}

impl std::error::Error for SteeringError {}

/// An error with its causes: the libraries' own texts leave out what the kernel said.
struct Chain<'e>(&'e dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
