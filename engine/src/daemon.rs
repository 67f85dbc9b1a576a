//! The daemon: the only file that sees both io and control.
