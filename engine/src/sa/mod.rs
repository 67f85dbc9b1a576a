//! Security associations: the validated request ([`spec`]), what a worker reads at run time ([`inbound`],
//! [`outbound`]: different types, so neither can be used for the other), the anti-replay window, the
//! selectors, and the lock-free table (SAD) with the reclamation it stands on ([`publish`], [`quiescence`]).

pub mod inbound;
pub mod outbound;
pub mod peer;
pub mod publish;
pub mod quiescence;
pub mod replay;
pub mod sad;
pub mod selector;
pub mod spec;

pub use inbound::InboundSa;
pub use outbound::OutboundSa;
pub use sad::Sad;
