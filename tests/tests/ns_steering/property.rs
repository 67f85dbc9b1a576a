//! Random ordered policies, searched linearly by a few lines that share nothing with the engine: what they would
//! PROTECT or DISCARD never gets to the kernel. And the programs hold back no more than the covers say.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_engine::io::steering::{CoverPrefix, Outcome, SteeringTables, Verdict};
use adit_engine::policy::cover::Prefix;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::frames::{Packet, TCP, UDP, long_chain, udp};
use super::sandbox::{Place, Programs};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Protect,
    Bypass,
    Discard,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Net {
    address: IpAddr,
    length: u8,
}

impl Net {
    fn has(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 4),
            IpAddr::V6(address) => (u128::from(address), 6),
        };
        let ((network, version), (address, other)) = (bits(self.address), bits(address));
        version == other && (self.length == 0 || (network ^ address) >> (128 - u32::from(self.length)) == 0)
    }
}

#[derive(Clone, Debug)]
struct Policy {
    action: Action,
    selectors: Vec<(Net, Net, Option<u8>)>,
}

/// First match wins.
fn linear(policies: &[Policy], local: IpAddr, remote: IpAddr, protocol: u8) -> Option<Action> {
    let means = |policy: &&Policy| {
        policy.selectors.iter().any(|(local_net, remote_net, selected)| {
            local_net.has(local)
                && remote_net.has(remote)
                && selected.is_none_or(|selected| selected == protocol)
        })
    };
    policies.iter().find(means).map(|policy| policy.action)
}

/// 16 addresses that share prefixes of many lengths: four bits of the index, spread over the address.
fn address(index: u8, v6: bool) -> IpAddr {
    let [a, b, c, d] = [3, 2, 1, 0].map(|bit| index >> bit & 1);
    if v6 {
        let [b, c, d] = [b, c, d].map(u16::from);
        Ipv6Addr::new(0x2001, 0xdb8 | u16::from(a) << 4, b << 15, c, 0, 0, 0, 2 + d).into()
    } else {
        Ipv4Addr::new(10 + a, b << 7, c, 2 + d).into()
    }
}

fn net() -> impl Strategy<Value = (u8, u8)> {
    (0u8..16, prop::sample::select(vec![0u8, 1, 2, 3, 4, 4, 4]))
}

/// A prefix that keeps the first `bits` of the four index bits; `v6` is the version.
fn net_of((index, bits): (u8, u8), v6: bool) -> Net {
    let lengths = if v6 { [0, 28, 33, 64, 128] } else { [0, 8, 9, 24, 32] };
    Net { address: address(index, v6), length: lengths[usize::from(bits)] }
}

fn policy() -> impl Strategy<Value = Policy> {
    let action =
        prop::sample::select(vec![Action::Protect, Action::Protect, Action::Bypass, Action::Discard]);
    let protocol = prop::sample::select(vec![None, None, Some(TCP), Some(UDP)]);
    let selector = (net(), net(), protocol, any::<bool>())
        .prop_map(|(local, remote, protocol, v6)| (net_of(local, v6), net_of(remote, v6), protocol));
    (action, prop::collection::vec(selector, 1..3))
        .prop_map(|(action, selectors)| Policy { action, selectors })
}

#[derive(Clone, Debug)]
struct Arrival {
    place: Place,
    packet: Packet,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    use Place::*;
    let place = prop::sample::select(vec![FromInside, FromOutside, ToOutside, ToInside, OwnToInside]);
    let fragment =
        prop::sample::select(vec![None, None, Some((true, 0)), Some((true, 185)), Some((false, 370))]);
    let tags = prop::sample::select(vec![vec![], vec![], vec![0x8100], vec![0x88a8, 0x8100]]);
    (place, 0u8..16, 0u8..16, any::<bool>(), any::<bool>(), fragment, tags, 0usize..4).prop_map(
        |(place, source, destination, v6, is_tcp, fragment, tags, more)| {
            let payload = udp((1024, 1025), &[7; 12]);
            let protocol = if is_tcp { TCP } else { UDP };
            let mut packet =
                Packet::between(address(source, v6), address(destination, v6), protocol, payload);
            packet.fragment = fragment;
            packet.tags = tags;
            packet.options = more * 4;
            packet.extensions = long_chain(more);
            Arrival { place, packet }
        },
    )
}

#[test]
fn what_the_linear_policy_protects_or_discards_never_passes() {
    let mut programs = Programs::new();
    programs.listen();
    let own: Vec<IpAddr> =
        [(0, false), (9, false), (0, true), (9, true)].map(|(i, v6)| address(i, v6)).into();
    programs.steering.set_own_addresses(&own).unwrap();
    let programs = RefCell::new(programs);
    let seen = RefCell::new(BTreeSet::new());

    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    let cases = (prop::collection::vec(policy(), 0..6), prop::collection::vec(arrival(), 24));
    let result = TestRunner::new(config).run(&cases, |(policies, arrivals)| {
        let side = |pick: fn(&(Net, Net, Option<u8>)) -> Net| -> Vec<CoverPrefix> {
            let prefixes = policies.iter().flat_map(|policy| {
                policy.selectors.iter().map(move |selector| {
                    let Net { address: network, length } = pick(selector);
                    CoverPrefix {
                        prefix: Prefix { network, length },
                        protect: policy.action == Action::Protect,
                        discard: policy.action == Action::Discard,
                        bypass: policy.action == Action::Bypass,
                    }
                })
            });
            prefixes.collect()
        };
        let (local, remote) = (side(|selector| selector.0), side(|selector| selector.1));
        let holds = |cover: &[CoverPrefix], address, which: fn(&CoverPrefix) -> bool| {
            cover.iter().any(|entry| {
                which(entry)
                    && Net { address: entry.prefix.network, length: entry.prefix.length }.has(address)
            })
        };
        programs
            .borrow_mut()
            .steering
            .set_cover(&SteeringTables { local: local.clone(), remote: remote.clone(), ..Default::default() })
            .unwrap();

        for Arrival { place, packet } in &arrivals {
            let (verdict, outcome) = programs.borrow().outcome(*place, &packet.frame());
            seen.borrow_mut().insert(outcome);
            let (source, destination) = (packet.source, packet.destination);
            let to_us = own.contains(&destination);
            let policy = match place {
                Place::FromOutside | Place::ToInside | Place::OwnToInside => {
                    linear(&policies, destination, source, packet.protocol)
                }
                Place::FromInside | Place::ToOutside => {
                    linear(&policies, source, destination, packet.protocol)
                }
            };

            // The property. A neighbour inside who speaks with the gateway crosses no boundary; the guard is for
            // PROTECT.
            let by_us = *place == Place::OwnToInside && own.contains(&source);
            let matters = match place {
                Place::FromInside => !to_us && matches!(policy, Some(Action::Protect | Action::Discard)),
                Place::FromOutside => matches!(policy, Some(Action::Protect | Action::Discard)),
                Place::ToOutside | Place::ToInside => policy == Some(Action::Protect),
                Place::OwnToInside => !by_us && policy == Some(Action::Protect),
            };
            prop_assert!(!matters || verdict != Verdict::Pass, "{place:?} {outcome:?} {packet:?} {policy:?}");

            // And no more than that: outside every cover the kernel is left alone.
            let any = |entry: &CoverPrefix| entry.protect || entry.discard;
            let uncovered = match place {
                Place::FromInside if to_us => !holds(&remote, source, any),
                Place::FromInside => !holds(&remote, destination, any),
                Place::FromOutside => !holds(&remote, source, any) || !holds(&local, destination, any),
                Place::ToOutside => !holds(&remote, destination, |entry| entry.protect),
                Place::ToInside | Place::OwnToInside => {
                    let protect = |entry: &CoverPrefix| entry.protect;
                    by_us || !holds(&remote, source, protect) || !holds(&local, destination, protect)
                }
            };
            prop_assert!(!uncovered || verdict == Verdict::Pass, "{place:?} {outcome:?} {packet:?}");
        }
        Ok(())
    });
    result.unwrap();

    // The cases were about something.
    use Outcome::*;
    let expected =
        [PassOwn, PassOutside, EngineOutbound, EngineInboundClear, DropClearText, DropVlan, GuardPass];
    for outcome in expected.into_iter().chain([GuardDropClearText]) {
        assert!(seen.borrow().contains(&outcome), "{outcome:?} never happened");
    }
}
