//! What the outside tests share: namespaces with a wire that can be listened to, gateways that run the real
//! programs, and a judge of what was on the wire.

pub mod control;
pub mod gateway;
pub mod memory;
pub mod packet;
pub mod process;
pub mod topology;
pub mod traffic;
pub mod wire;
