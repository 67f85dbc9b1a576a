//! The kernel's side of the packet path: frames, rings, steering, and the only loop.
//!
//! ```text
//!              Receiver ──burst──> Process (the pipeline) ──outputs──> Egress ──> Transmitter
//!   fill ring <──same frame──┘          │                                 ├──> Waiting (no neighbour yet)
//!                                       └──another worker's SA──> Mailbox │
//! ```
//!
//! The gateway's own stack is another source of bursts and another way out: [`host`], a TUN device.
//!
//! [`umem`] says who owns a frame, [`socket`] moves frames to and from the kernel, [`worker`] is the loop,
//! [`datapath`] starts and stops workers and rebuilds the sockets of an interface that went away.

pub mod datapath;
pub mod egress;
pub mod hand_over;
pub mod host;
pub mod large;
pub mod process;
pub mod queues;
pub mod socket;
pub mod steering;
pub mod transmit;
pub mod umem;
pub mod waiting;
mod watchdog;
pub mod worker;

pub use datapath::{
    Datapath, DatapathConfig, LinkEvent, NeighbourRequests, SocketRegistry, StartError, VlanPort,
};
pub use process::{Online, Process};
