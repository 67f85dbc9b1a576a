//! Captures: pcap and pcapng in, pcap out.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::Block;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, TsResolution};

/// A frame and when it was captured (since 1970).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// Time stamp.
    pub time: Duration,
    /// The frame, Ethernet header first.
    pub frame: Vec<u8>,
}

/// The first four bytes of a pcapng file, in either byte order.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Reads a capture of Ethernet frames in either format.
///
/// # Errors
/// What is wrong with the file: not readable, not a capture, not Ethernet, or frames that were cut.
pub fn read(path: &Path) -> Result<Vec<Captured>, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .and_then(|_| {
            parse(&bytes).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
        })
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// As [`read`], from bytes.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8]) -> Result<Vec<Captured>, String> {
    if bytes.starts_with(&PCAPNG_MAGIC) { parse_pcapng(bytes) } else { parse_pcap(bytes) }
}

fn parse_pcap(bytes: &[u8]) -> Result<Vec<Captured>, String> {
    let mut reader = PcapReader::new(bytes).map_err(|error| error.to_string())?;
    ethernet(reader.header().datalink)?;
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.map_err(|error| format!("packet {}: {error}", frames.len() + 1))?;
        push(&mut frames, packet.timestamp, packet.orig_len, &packet.data)?;
    }
    Ok(frames)
}

fn parse_pcapng(bytes: &[u8]) -> Result<Vec<Captured>, String> {
    let mut reader = PcapNgReader::new(bytes).map_err(|error| error.to_string())?;
    let mut frames = Vec::new();
    loop {
        let (interface_id, timestamp, original_length, frame) = match reader.next_block() {
            None => return Ok(frames),
            Some(Err(error)) => return Err(format!("after packet {}: {error}", frames.len())),
            Some(Ok(Block::EnhancedPacket(packet))) => {
                (packet.interface_id, packet.timestamp, packet.original_len, packet.data.into_owned())
            }
            Some(Ok(_)) => continue,
        };
        let interfaces = reader.interfaces();
        let interface =
            interfaces.get(interface_id as usize).ok_or("a packet of an interface not described")?;
        ethernet(interface.linktype)?;
        // The reader takes the file's units for nanoseconds.
        let time = scale(timestamp.as_nanos() as u64, interface);
        push(&mut frames, time, original_length, &frame)?;
    }
}

/// `if_tsresol`: a negative power of 10, or of 2 with the top bit set; microseconds without it.
fn scale(units: u64, interface: &InterfaceDescriptionBlock<'_>) -> Duration {
    let resolution = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    let resolution = resolution.unwrap_or(6);
    let exponent = u32::from(resolution & 0x7f);
    let base: u128 = if resolution & 0x80 == 0 { 10 } else { 2 };
    let nanoseconds = match base.checked_pow(exponent) {
        Some(per_second) => u128::from(units) * 1_000_000_000 / per_second,
        None => 0,
    };
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

fn ethernet(link: DataLink) -> Result<(), String> {
    match link {
        DataLink::ETHERNET => Ok(()),
        other => Err(format!("expected a capture of Ethernet frames, found link type {other:?}")),
    }
}

fn push(frames: &mut Vec<Captured>, time: Duration, original: u32, bytes: &[u8]) -> Result<(), String> {
    if (original as usize) > bytes.len() {
        let number = frames.len() + 1;
        return Err(format!(
            "packet {number} was cut to {} of {original} bytes: capture whole frames",
            bytes.len()
        ));
    }
    frames.push(Captured { time, frame: bytes.to_vec() });
    Ok(())
}

/// A capture that is being written: pcap with nanoseconds.
pub struct Writer<W: Write>(PcapWriter<W>);

impl Writer<BufWriter<File>> {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// The system's.
    pub fn create(path: &Path) -> Result<Self, String> {
        let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::new(BufWriter::new(file))
    }
}

impl<W: Write> Writer<W> {
    /// Begins a capture.
    ///
    /// # Errors
    /// The system's.
    pub fn new(inner: W) -> Result<Self, String> {
        let header = PcapHeader {
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        PcapWriter::with_header(inner, header).map(Self).map_err(|error| error.to_string())
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, time: Duration, frame: &[u8]) -> Result<(), String> {
        let packet = PcapPacket::new(time, frame.len() as u32, frame);
        self.0.write_packet(&packet).map(drop).map_err(|error| error.to_string())
    }

    /// Ends it: everything is with the system.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> Result<(), String> {
        self.0.into_writer().flush().map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        let frames: Vec<_> = (1..5)
            .map(|n| Captured { time: Duration::new(1_700_000_000, n * 1001), frame: vec![n as u8; 60] })
            .collect();
        for captured in &frames {
            writer.write(captured.time, &captured.frame).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(parse(&bytes).unwrap(), frames);
    }

    /// Written by hand from the pcapng draft (IETF opsawg): section header, interface, one packet.
    fn pcapng(resolution: Option<u8>) -> Vec<u8> {
        let mut file = Vec::new();
        let mut block = |kind: u32, body: &[u8]| {
            let length = (body.len() + 12) as u32;
            for part in [&kind.to_le_bytes()[..], &length.to_le_bytes(), body, &length.to_le_bytes()] {
                file.extend(part);
            }
        };
        block(0x0a0d_0d0a, &[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
        let options =
            resolution.map_or(vec![], |resolution| vec![9, 0, 1, 0, resolution, 0, 0, 0, 0, 0, 0, 0]);
        block(1, &[&[1, 0, 0, 0, 0, 0, 4, 0][..], &options].concat());
        let time = 5_000_000_u64;
        let mut packet = vec![0, 0, 0, 0];
        packet.extend(((time >> 32) as u32).to_le_bytes());
        packet.extend((time as u32).to_le_bytes());
        packet.extend([14, 0, 0, 0, 14, 0, 0, 0]);
        packet.extend([7; 14]);
        packet.extend([0; 2]);
        block(6, &packet);
        file
    }

    #[test]
    fn pcapng_time_has_the_unit_its_interface_says() {
        for (resolution, seconds) in
            [(None, 5.0), (Some(6), 5.0), (Some(9), 0.005), (Some(0x80 | 20), 5e6 / 1_048_576.0)]
        {
            let read = parse(&pcapng(resolution)).unwrap();
            assert_eq!(read.len(), 1);
            assert_eq!(read[0].frame, [7; 14]);
            assert!(
                (read[0].time.as_secs_f64() - seconds).abs() < 1e-6,
                "{resolution:?}: {:?}",
                read[0].time
            );
        }
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        assert!(parse(b"").is_err());
        assert!(parse(&[0; 64]).is_err());
        assert!(parse(&pcapng(None)[..40]).is_err());
        let mut cut = Vec::new();
        let mut writer = Writer::new(&mut cut).unwrap();
        writer.write(Duration::ZERO, &[0; 60]).unwrap();
        writer.finish().unwrap();
        // The original length of the first packet: behind the file's 24 bytes and 12 of the packet's.
        cut[36..40].copy_from_slice(&61_u32.to_be_bytes());
        let error = parse(&cut).unwrap_err();
        assert!(error.contains("cut to 60 of 61"), "{error}");
    }
}
