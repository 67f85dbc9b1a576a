//! Listens on the wire between the gateways and judges every frame. It reads frames with its own few lines,
//! not with the engine's: agreement with ourselves proves nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::process::{Running, eventually};
use crate::topology::Topology;

/// A capture in progress.
pub struct Listener {
    tcpdump: Running,
    capture: PathBuf,
    log: PathBuf,
}

/// What a frame on the wire was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// ESP or AH with this SPI and sequence number.
    Esp {
        /// SPI.
        spi: u32,
        /// Low 32 bits of the sequence number.
        sequence: u32,
        /// Outer source.
        source: IpAddr,
    },
    /// ARP, neighbour discovery, MLD: the link's own talk.
    Link,
    /// Anything else.
    Clear {
        /// Source.
        source: Option<IpAddr>,
        /// Destination.
        destination: Option<IpAddr>,
        /// Protocol or EtherType.
        protocol: u16,
    },
}

/// Everything that was on the wire.
#[derive(Default, Debug)]
pub struct Heard {
    /// Every frame in order.
    pub frames: Vec<(Kind, Vec<u8>)>,
    /// The file that they are in, for foreign readers.
    pub capture: PathBuf,
}

impl Listener {
    /// Starts to listen at one end of the wire: `left` (gateway A) or `right` (gateway B).
    pub fn start(topology: &Topology, port: &str) -> Self {
        let capture = topology.directory().join(format!("wire-{port}-{}.pcap", std::process::id()));
        let log = topology.directory().join(format!("tcpdump-{port}.log"));
        let _ = std::fs::remove_file(&capture);
        let mut command = topology.command("wire", "tcpdump");
        command
            .args(["--immediate-mode", "-B", "131072", "-U", "-n", "-i", port, "-w"])
            .arg(&capture)
            .stderr(std::fs::File::create(&log).expect("the directory is ours"))
            .stdout(Stdio::null());
        let tcpdump = Running::start(&mut command);
        eventually("tcpdump listens", Duration::from_secs(10), || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("listening on"))
        });
        Self { tcpdump, capture, log }
    }

    /// Stops and reads what was heard. A capture that lost frames ends the test: it could hide a leak.
    pub fn stop(mut self) -> Heard {
        std::thread::sleep(Duration::from_millis(300));
        self.tcpdump.signal(rustix::process::Signal::INT);
        self.tcpdump.wait_for_end(Duration::from_secs(10));
        let log = std::fs::read_to_string(&self.log).expect("tcpdump logs");
        assert!(log.contains("\n0 packets dropped by kernel"), "the capture is incomplete: {log}");
        let file = std::fs::File::open(&self.capture).expect("tcpdump wrote");
        let mut reader = pcap_file::pcap::PcapReader::new(std::io::BufReader::new(file)).expect("a capture");
        let mut heard = Heard { frames: Vec::new(), capture: self.capture.clone() };
        while let Some(packet) = reader.next_packet() {
            let frame = packet.expect("a whole capture").data.into_owned();
            heard.frames.push((judge(&frame), frame));
        }
        heard
    }
}

/// Says what a frame is.
pub fn judge(frame: &[u8]) -> Kind {
    let clear = |source, destination, protocol| Kind::Clear { source, destination, protocol };
    let Some(ether_type) = frame.get(12..14).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])) else {
        return clear(None, None, 0);
    };
    let packet = &frame[14..];
    let (source, destination, protocol, payload) = match ether_type {
        0x0806 => return Kind::Link,
        0x0800 if packet.len() >= 20 => {
            let address =
                |at: usize| IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap()));
            let header = usize::from(packet[0] & 15) * 4;
            (address(12), address(16), packet[9], packet.get(header..).unwrap_or(&[]))
        }
        0x86dd if packet.len() >= 40 => {
            let address =
                |at: usize| IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap()));
            (address(8), address(24), packet[6], &packet[40..])
        }
        other => return clear(None, None, other),
    };
    match protocol {
        50 if payload.len() >= 8 => Kind::Esp {
            spi: u32::from_be_bytes(payload[..4].try_into().unwrap()),
            sequence: u32::from_be_bytes(payload[4..8].try_into().unwrap()),
            source,
        },
        51 if payload.len() >= 12 => Kind::Esp {
            spi: u32::from_be_bytes(payload[4..8].try_into().unwrap()),
            sequence: u32::from_be_bytes(payload[8..12].try_into().unwrap()),
            source,
        },
        // ESP in UDP; IKE begins with four zeros where that has its SPI (RFC 3948 section 2.2).
        17 if payload.len() >= 16 && payload[2..4] == [0x11, 0x94] && payload[8..12] != [0; 4] => Kind::Esp {
            spi: u32::from_be_bytes(payload[8..12].try_into().unwrap()),
            sequence: u32::from_be_bytes(payload[12..16].try_into().unwrap()),
            source,
        },
        // Neighbour and router discovery, MLD: link-local talk of the kernels, hop-by-hop header in front of MLD.
        58 if matches!(payload.first(), Some(130..=137 | 143)) => Kind::Link,
        0 if payload.first() == Some(&58) && destination.is_multicast() => Kind::Link,
        other => clear(Some(source), Some(destination), other.into()),
    }
}

impl Heard {
    /// Ends the test if any frame is neither ESP or AH nor the link's own talk nor one that `bypass` lists.
    pub fn assert_no_clear_text(&self, bypass: impl Fn(&Kind, &[u8]) -> bool) {
        let leaked: Vec<_> = self.leaks(bypass).collect();
        assert!(
            leaked.is_empty(),
            "{} frames in clear on the wire, the first: {:?}",
            leaked.len(),
            leaked[0]
        );
    }

    /// The frames that [`Heard::assert_no_clear_text`] would complain of.
    pub fn leaks(&self, bypass: impl Fn(&Kind, &[u8]) -> bool) -> impl Iterator<Item = &(Kind, Vec<u8>)> {
        self.frames
            .iter()
            .filter(move |(kind, frame)| matches!(kind, Kind::Clear { .. }) && !bypass(kind, frame))
    }

    /// ESP or AH packets with `spi`.
    pub fn esp(&self, spi: u32) -> u64 {
        self.frames.iter().filter(|(kind, _)| matches!(kind, Kind::Esp { spi: s, .. } if *s == spi)).count()
            as u64
    }

    /// ESP or AH packets by outer source.
    pub fn esp_from(&self, from: IpAddr) -> u64 {
        self.frames
            .iter()
            .filter(|(kind, _)| matches!(kind, Kind::Esp { source, .. } if *source == from))
            .count() as u64
    }

    /// Ends the test if a sequence number of an SPI was used twice.
    pub fn assert_sequence_numbers_unique(&self) {
        let mut seen = BTreeMap::new();
        for (position, (kind, _)) in self.frames.iter().enumerate() {
            if let Kind::Esp { spi, sequence, .. } = kind
                && let Some(first) = seen.insert((*spi, *sequence), position)
            {
                panic!("SPI {spi:#x} sequence {sequence} twice: frames {first} and {position}");
            }
        }
    }
}
