//! What the outside tests share: gateways that run the real programs in namespaces with a wire that can be
//! listened to, gateways in memory, and the published vectors.

pub mod ah_peer;
pub mod allocator;
pub mod control;
pub mod fuzzing;
pub mod gateway;
pub mod memory;
pub mod netns;
pub mod numbers;
pub mod openssl;
pub mod packet;
pub mod process;
pub mod scapy;
pub mod topology;
pub mod traffic;
pub mod tshark;
pub mod vectors;
pub mod wire;
