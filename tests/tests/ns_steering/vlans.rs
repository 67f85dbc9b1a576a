//! VLANs that are ports: whose frames the engine gets, and which side they are on.

use adit_engine::io::steering::Outcome;
use adit_engine::route::Side;
use adit_engine::wire::vlan::Tags;

use super::decisions::{KNOWN, UNKNOWN, both, configured, verdict_of};
use super::frames::Packet;
use super::sandbox::{Place, Programs};
use Outcome::*;
use Place::*;

const C_TAG: u16 = 0x8100;
const S_TAG: u16 = 0x88a8;

/// The frame of `packet` behind tags of these kinds and control fields (priority and identifier).
fn tagged(packet: &Packet, tags: &[(u16, u16)]) -> Vec<u8> {
    let mut frame = packet.frame();
    let fields = tags.iter().flat_map(|(kind, control)| [*kind, *control]).flat_map(u16::to_be_bytes);
    frame.splice(12..12, fields);
    frame
}

#[track_caller]
fn expect(programs: &Programs, place: Place, packet: &Packet, tags: &[(u16, u16)], outcome: Outcome) {
    let frame = tagged(packet, tags);
    assert_eq!(programs.outcome(place, &frame), (verdict_of(outcome), outcome), "{place:?} {tags:x?}");
}

/// VLAN 100 inside; VLAN 200, and 300 behind outer 30, outside: on an interface of either side.
fn gateway() -> Programs {
    let vlan = |outer, inner, side| (Tags { outer, inner }, side);
    configured(Programs::with_vlans(&[
        vlan(0, 100, Side::Protected),
        vlan(0, 200, Side::Unprotected),
        vlan(30, 300, Side::Unprotected),
    ]))
}

#[test]
fn a_vlan_is_on_its_own_side_whatever_the_interface_is() {
    let programs = gateway();
    for interface in [FromInside, FromOutside] {
        for (inside, behind) in both("10.1.0.2", "10.2.0.2") {
            let (out, back) = (Packet::tcp(&inside, &behind), Packet::tcp(&behind, &inside));
            // Also with a priority, and behind a priority tag of the other kind.
            for tags in [&[(C_TAG, 100)][..], &[(C_TAG, 0xe064)], &[(S_TAG, 0x6000), (C_TAG, 100)]] {
                expect(&programs, interface, &out, tags, EngineOutbound);
            }
            for tags in [&[(C_TAG, 200)][..], &[(S_TAG, 30), (C_TAG, 300)], &[(S_TAG, 0xf01e), (C_TAG, 300)]]
            {
                expect(&programs, interface, &back, tags, EngineInboundClear);
                expect(&programs, interface, &out, tags, PassOutside);
            }
        }
        for (peer, own) in both("192.0.2.2", "192.0.2.1") {
            for tags in [&[(C_TAG, 100)][..], &[(S_TAG, 30), (C_TAG, 300)]] {
                expect(&programs, interface, &Packet::esp(&peer, &own, KNOWN), tags, EngineEsp);
                expect(&programs, interface, &Packet::tcp(&peer, &own), tags, PassOwn);
            }
        }
        for (behind, own) in both("10.2.0.2", "10.1.0.1") {
            let claim = Packet::tcp(&behind, &own);
            expect(&programs, interface, &claim, &[(C_TAG, 200)], DropClearText);
        }
        // Errors about our ESP come from outside.
        let about = Packet::esp("192.0.2.1", "192.0.2.2", UNKNOWN).frame()[14..].to_vec();
        let error =
            Packet::new("192.0.2.2", "192.0.2.1", 1, [&[3, 4, 0, 0, 0, 0, 5, 0][..], &about].concat());
        expect(&programs, interface, &error, &[(C_TAG, 200)], EngineIcmp);
        expect(&programs, interface, &error, &[(C_TAG, 100)], PassOwn);
    }
}

#[test]
fn a_priority_tag_is_no_vlan() {
    let programs = gateway();
    for (inside, behind) in both("10.1.0.2", "10.2.0.2") {
        let (out, back) = (Packet::tcp(&inside, &behind), Packet::tcp(&behind, &inside));
        for tags in [&[(C_TAG, 0)][..], &[(C_TAG, 0xa000)], &[(S_TAG, 0)], &[(S_TAG, 0), (C_TAG, 0xe000)]] {
            expect(&programs, FromInside, &out, tags, EngineOutbound);
            expect(&programs, FromOutside, &back, tags, EngineInboundClear);
            expect(&programs, ToOutside, &out, tags, GuardDropClearText);
        }
    }
}

#[test]
fn a_vlan_that_is_no_port_stays_closed_under_the_cover() {
    let programs = gateway();
    let unknown = [
        &[(C_TAG, 101)][..],
        &[(C_TAG, 300)],
        &[(S_TAG, 100)],
        &[(S_TAG, 30), (C_TAG, 301)],
        &[(S_TAG, 31), (C_TAG, 300)],
        &[(C_TAG, 30), (C_TAG, 300)],
        &[(C_TAG, 0), (C_TAG, 100)],
        &[(C_TAG, 100), (S_TAG, 30)],
        &[(S_TAG, 30), (S_TAG, 30)],
        &[(S_TAG, 100), (C_TAG, 0)],
    ];
    for (inside, behind) in both("10.1.0.2", "10.2.0.2") {
        let (out, back) = (Packet::tcp(&inside, &behind), Packet::tcp(&behind, &inside));
        for tags in unknown {
            expect(&programs, FromInside, &out, tags, DropVlan);
            expect(&programs, FromOutside, &back, tags, DropVlan);
            expect(&programs, ToOutside, &out, tags, GuardDropClearText);
            expect(&programs, ToInside, &back, tags, GuardDropClearText);
        }
    }
}

#[test]
fn the_guard_looks_at_the_side_of_the_vlan() {
    let programs = gateway();
    for place in [ToInside, ToOutside] {
        for (inside, behind) in both("10.1.0.2", "10.2.0.2") {
            let (out, back) = (Packet::tcp(&inside, &behind), Packet::tcp(&behind, &inside));
            for tags in [&[(C_TAG, 200)][..], &[(S_TAG, 30), (C_TAG, 300)]] {
                expect(&programs, place, &out, tags, GuardDropClearText);
                expect(&programs, place, &back, tags, GuardPass);
            }
            // Inside, what claims to come from behind a peer and never met the policy.
            expect(&programs, ToInside, &back, &[(C_TAG, 100)], GuardDropClearText);
        }
    }
}
