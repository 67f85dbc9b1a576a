//! A forged packet does not move the anti-replay window (RFC 4303 section 3.4.3: "The receive window is updated
//! only if the integrity verification succeeds."), from outside, with real ICVs. The traces of genuine packets
//! and the table of ESN inference run beside the window itself, in `sa::replay`.

use adit_engine::crypto::key::KeyMaterial;
use adit_engine::crypto::sequence::SequenceCounter;
use adit_engine::crypto::{Authentication, Encryption, IvSource, Key, Open, Opener, Seal, Sealer, Suite};
use adit_engine::sa::replay::{Refused, ReplayWindow};
use adit_engine::transform::esp::Layout;
use adit_engine::wire::{Spi, esp};
use adit_tests::vectors::Vectors;

const SPI: Spi = Spi(0x1000);

/// What became of a packet.
#[derive(Debug, PartialEq)]
enum Fate {
    Accepted,
    IcvWrong,
    Replayed(Refused),
}

struct Peer {
    sealer: Sealer,
    opener: Opener,
    layout: Layout,
    window: ReplayWindow,
}

impl Peer {
    fn new(window: u32) -> Self {
        let suite = Suite::new(Encryption::Null, Authentication::Sha256, None).unwrap();
        let keys = KeyMaterial {
            encryption: Key::new(Vec::new().into_boxed_slice().into()),
            authentication: Key::new(vec![0x5a; 32].into_boxed_slice().into()),
        };
        Self {
            sealer: Sealer::new(suite, &keys, false).unwrap(),
            opener: Opener::new(suite, &keys, false).unwrap(),
            layout: Layout::new(&suite),
            window: ReplayWindow::new(window, false, 0),
        }
    }

    fn seal(&self, sequence: u64) -> Vec<u8> {
        let payload = [0x45; 20];
        let mut packet = vec![0; self.layout.esp_length(payload.len())];
        let number = SequenceCounter::starting_after(sequence - 1).take(1, sequence).unwrap().next().unwrap();
        let mut burst = [Seal { esp: &mut packet, payload: &payload, next_header: 4, sequence: number }];
        self.sealer.seal(SPI, &mut burst, &mut IvSource::from_seed([1; 32]));
        packet
    }

    /// The receiver's order: check, ICV, commit.
    fn receive(&self, packet: &[u8]) -> Fate {
        let candidate = match self.window.check(esp::parse(packet).unwrap().sequence_low) {
            Ok(candidate) => candidate,
            Err(refused) => return Fate::Replayed(refused),
        };
        let mut plaintext = vec![0; self.layout.ciphertext_length(packet.len()).unwrap()];
        let mut burst =
            [Open { esp: packet, plaintext: &mut plaintext, sequence: candidate.sequence(), verdict: None }];
        self.opener.open(&mut burst);
        let [opened] = burst;
        let Some(proof) = opened.verdict else { return Fate::IcvWrong };
        match self.window.commit(candidate.authenticate(proof).unwrap()) {
            Ok(()) => Fate::Accepted,
            Err(refused) => Fate::Replayed(refused),
        }
    }
}

fn fate(name: &str) -> Fate {
    match name {
        "accept" => Fate::Accepted,
        "drop_icv" => Fate::IcvWrong,
        "drop_replay" | "drop_replay_precheck" => Fate::Replayed(Refused::Duplicate),
        "drop_old" => Fate::Replayed(Refused::TooOld),
        other => panic!("unknown fate {other}"),
    }
}

#[test]
fn a_forged_packet_does_not_move_the_window() {
    let mut vectors = Vectors::load("replay_forgery_traces.json");
    for trace in vectors.take_list("traces") {
        let peer = Peer::new(trace["window"].as_u64().unwrap() as u32);
        for step in trace["ops"].as_array().unwrap() {
            let sequence = step[1].as_u64().unwrap();
            let mut packet = peer.seal(sequence);
            if step[0] == "f" {
                *packet.last_mut().unwrap() ^= 1;
            }
            let edge = peer.window.right_edge();
            let found = peer.receive(&packet);
            assert_eq!(found, fate(step[2].as_str().unwrap()), "{step}");
            let expected_edge = if found == Fate::Accepted { edge.max(sequence) } else { edge };
            assert_eq!(peer.window.right_edge(), expected_edge, "{step}");
        }
        vectors.ran();
    }
    vectors.finish();
}

/// A proof is of one packet: it does not authenticate another number.
#[test]
fn a_proof_of_one_number_does_not_commit_another() {
    let peer = Peer::new(64);
    let packet = peer.seal(5);
    let mut plaintext = vec![0; peer.layout.ciphertext_length(packet.len()).unwrap()];
    let mut burst = [Open { esp: &packet, plaintext: &mut plaintext, sequence: 5, verdict: None }];
    peer.opener.open(&mut burst);
    let [opened] = burst;
    let other = peer.window.check(6).unwrap();
    assert!(other.authenticate(opened.verdict.unwrap()).is_none());
    assert_eq!(peer.receive(&packet), Fate::Accepted);
}
