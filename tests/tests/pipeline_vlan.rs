//! Frames with VLAN tags through two gateways in memory: a tag decides the port, and is gone behind it.

use adit_engine::pipeline::{DropReason, Received};
use adit_engine::route::{PortId, Vlan};
use adit_engine::wire::vlan::Tags;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Site};
use adit_tests::packet::{frame, one_hop_on, udp, unframe};

/// The wires that the ports of [`Gateway`] are VLANs of here.
const TRUNK: PortId = PortId(2);
const QINQ: Tags = Tags { outer: 30, inner: 300 };
const SINGLE: Tags = Tags { outer: 0, inner: 100 };

/// Both gateways; inside and outside are VLANs of one interface.
fn pair() -> (Gateway, Gateway) {
    let (mut a, mut b) = Gateway::pair(&Options::new());
    for gateway in [&mut a, &mut b] {
        gateway.change_network(|ports| {
            let mut trunk = ports[0].clone();
            (trunk.name, trunk.addresses) = ("trunk".into(), Vec::new());
            ports.push(trunk);
            ports[0].vlan = Some(Vlan { parent: TRUNK, tags: SINGLE });
            ports[1].vlan = Some(Vlan { parent: TRUNK, tags: QINQ });
        });
    }
    (a, b)
}

fn tagged(frame: &[u8], tags: Tags) -> Vec<u8> {
    let mut tagged = [&vec![0; tags.length()][..], frame].concat();
    tags.write(&mut tagged);
    tagged
}

#[test]
fn a_tunnel_between_vlans_of_one_interface() {
    let (mut a, mut b) = pair();
    let packet = udp(Site::A.host(false), Site::B.host(false), 500);
    let sealed = a.run_frames(vec![(TRUNK, tagged(&frame(&packet), SINGLE))]);
    assert_eq!((sealed.len(), sealed[0].0), (1, OUTSIDE), "{:?}", a.drops());
    let opened = b.run_frames(vec![(TRUNK, tagged(&sealed[0].1, QINQ))]);
    assert_eq!((opened.len(), opened[0].0), (1, INSIDE), "{:?}", b.drops());
    assert_eq!(unframe(&opened[0].1), one_hop_on(&one_hop_on(&packet)));
}

#[test]
fn what_has_no_port_is_dropped() {
    let (mut a, _) = pair();
    let covered = frame(&udp(Site::A.host(false), Site::B.host(false), 500));
    let unknown = Tags { outer: 30, inner: 301 };
    for frame in [
        tagged(&covered, unknown),
        tagged(&covered, Tags { outer: 30, inner: 0 }),
        tagged(&tagged(&covered, SINGLE), SINGLE),
        tagged(&tagged(&covered, QINQ), QINQ),
        tagged(&covered, SINGLE)[..15].to_vec(),
    ] {
        assert!(a.run_frames(vec![(TRUNK, frame)]).is_empty());
    }
    assert_eq!(a.drops(), [(DropReason::Vlan, 5)]);
    // An interface without VLANs of its own has those of no other.
    assert!(a.run_frames(vec![(OUTSIDE, tagged(&covered, SINGLE))]).is_empty());
    assert_eq!(a.drops(), [(DropReason::Vlan, 6)]);
}

#[test]
fn a_priority_tag_means_the_interface_itself() {
    let (mut a, _) = Gateway::pair(&Options::new());
    let mut tagged = tagged(&frame(&udp(Site::A.host(false), Site::B.host(false), 500)), SINGLE);
    tagged[14..16].copy_from_slice(&[0xe0, 0]);
    assert_eq!(a.run_frames(vec![(INSIDE, tagged)]).len(), 1, "{:?}", a.drops());
}

#[test]
fn errors_return_by_the_vlan() {
    let (mut a, _) = pair();
    let mut packet = udp(Site::A.host(false), Site::B.host(false), 500);
    packet[8] = 1;
    adit_tests::packet::fix_ipv4(&mut packet);
    let sent = frame(&packet);
    let told = a.run_frames(vec![(TRUNK, tagged(&sent, SINGLE))]);
    assert_eq!((told.len(), told[0].0), (1, INSIDE));
    assert_eq!(told[0].1[..6], sent[6..12], "to the station that sent it");
}

/// Whoever hands a tagged frame over has to say how it lies there now.
#[test]
fn a_frame_that_is_handed_over_is_one_of_its_vlan() {
    let (mut a, _) = pair();
    let packet = frame(&udp(Site::A.host(false), Site::B.host(false), 500));
    assert_eq!(a.tunnel.outbound.get().unwrap().owner(1), 1, "worker 1 has the SA");
    let mut frames = [packet.clone(), tagged(&packet, SINGLE)];
    let ports = [INSIDE, TRUNK];
    let mut burst: Vec<_> =
        frames.iter_mut().zip(ports).map(|(frame, port)| Received { port, frame }).collect();
    a.engine.process(0, &mut burst);
    assert_eq!(burst[1].port, INSIDE);
    assert_eq!(*burst[1].frame, packet);
    assert_eq!(a.engine.take_handed_over().collect::<Vec<_>>(), [(0, 1), (1, 1)]);
}
