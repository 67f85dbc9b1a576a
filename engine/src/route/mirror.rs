//! The netlink side of the mirror.
