//! SAs come and go by the thousand beside one that is in use: its packets pass, and what the others held is given back.

use std::sync::Arc;
use std::time::Duration;

use adit_engine::sa::publish::{reclaim, synchronize};
use adit_engine::wire::Spi;
use adit_tests::allocator::{self, Counting};
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, SPI_TO_B, Site};
use adit_tests::packet::{one_hop_on, udp};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// SAs beside the one in use, at a time; and how often all of them are replaced.
const BESIDE: u32 = 1000;
const ROUNDS: u64 = 100;

// One test, because the count is the process's.
#[test]
fn memory_returns_and_the_others_pass() {
    let options = Options::new();
    let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
    let inner = udp(Site::A.host(false), Site::B.host(false), 100);
    let mut number = 0;
    let mut passes = |b: &mut Gateway| {
        number += 1;
        assert_eq!(b.run(OUTSIDE, &[peer.seal(number, 4, &inner)]), [(INSIDE, one_hop_on(&inner))]);
    };
    let mut held = Vec::new();
    for _ in 0..ROUNDS {
        for index in 0..BESIDE {
            let spi = Spi(SPI_TO_B.0 + 1 + index);
            let sa = Options { spi: Some(spi), ..options.clone() }.inbound(Site::B);
            b.engine.tables.sad.insert(Arc::new(sa)).expect("a new SPI");
            if index % 100 == 0 {
                passes(&mut b);
            }
        }
        assert_eq!(b.engine.tables.sad.len(), BESIDE as usize + 1);
        for index in 0..BESIDE {
            b.engine.tables.sad.remove(Spi(SPI_TO_B.0 + 1 + index)).expect("it was there");
            if index % 100 == 0 {
                passes(&mut b);
            }
        }
        assert!(synchronize(Duration::from_secs(10)), "nobody looks any more");
        reclaim();
        held.push(allocator::bytes_held());
    }
    assert_eq!(b.engine.tables.sad.len(), 1);
    // The table itself may have grown in the first round; an SA is about a kibibyte.
    let grown = held.last().unwrap() - held[0];
    assert!(grown < i64::from(BESIDE) * 10, "{grown} bytes more after {ROUNDS} rounds: {held:?}");
}
