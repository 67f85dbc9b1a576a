//! What an SA costs: at most 1 KiB, expanded keys included, beside its anti-replay window and its selectors (which are
//! as many as its policies have).

use std::sync::Arc;

use adit_engine::crypto::Suite;
use adit_engine::sa::lifetime::Limits;
use adit_engine::sa::spec::{InboundSpec, Mode, OutboundSpec, Protocol, SaSpec, Workers};
use adit_engine::sa::{InboundSa, OutboundSa};
use adit_engine::transform::ecn::Ecn;
use adit_engine::transform::tunnel::{DontFragment, Dscp};
use adit_engine::wire::Spi;
use adit_tests::allocator::{self, Counting};
use adit_tests::memory::{Options, Site, networks};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MOST_BYTES: i64 = 1024;

fn held_by<T>(make: impl FnOnce() -> T) -> (i64, T) {
    let before = allocator::bytes_held();
    let made = make();
    (allocator::bytes_held() - before, made)
}

// One test, because the count is the process's.
#[test]
fn an_sa_is_at_most_a_kibibyte_and_its_window() {
    let tunnel: Arc<str> = "branch".into();
    for suite in Suite::all() {
        let keys = Options::with_suite(suite).key_material();
        let spec = || SaSpec {
            tunnel: tunnel.clone(),
            spi: Spi(0x1000),
            protocol: Protocol::Esp,
            mode: Mode::Tunnel,
            udp: None,
            suite,
            local: Site::A.endpoint(false),
            remote: Site::B.endpoint(false),
            esn: true,
            selectors: networks(Site::A),
            limits: Limits::default(),
        };
        let selectors = size_of_val(networks(Site::A).as_slice()) as i64;
        let (bytes, sa) = held_by(|| {
            let spec = InboundSpec { sa: spec(), replay_window: 1024, last_sequence: 0 };
            Arc::new(InboundSa::new(spec, &keys).expect("good keys"))
        });
        let beside = sa.replay.slot_bytes() as i64 + selectors;
        assert!(bytes - beside <= MOST_BYTES, "inbound {suite:?}: {bytes} bytes, {beside} of them beside it");
        let (bytes, _sa) = held_by(|| {
            let (workers, dscp, dont_fragment) = (Workers::One, Dscp::Copy, DontFragment::Copy);
            let spec = OutboundSpec {
                sa: spec(),
                workers,
                ttl: 64,
                dscp,
                ecn: Ecn::Copy,
                dont_fragment,
                keepalive_seconds: 0,
                last_sequence: 0,
            };
            Arc::new(OutboundSa::new(spec, &keys).expect("good keys"))
        });
        assert!(bytes - selectors <= MOST_BYTES, "outbound {suite:?}: {bytes} bytes");
    }
}
