//! Frames, byte by byte, by rules of the RFCs and none of the engine's code.

use std::net::IpAddr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ESP: u8 = 50;
pub const AH: u8 = 51;
pub const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

/// An IP packet to be; fields default to an unfragmented packet without options.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub payload: Vec<u8>,
    pub hop_limit: u8,
    /// More fragments, and the offset in 8 bytes. For IPv6 it makes a fragment header.
    pub fragment: Option<(bool, u16)>,
    /// IPv4: bytes of options (a multiple of four). IPv6: see `extensions`.
    pub options: usize,
    /// IPv6 extension headers in front of a fragment header: type, and bytes behind the first eight / 8.
    pub extensions: Vec<(u8, u8)>,
    /// 802.1Q or 802.1ad EtherTypes, outermost first.
    pub tags: Vec<u16>,
}

impl Packet {
    pub fn new(source: &str, destination: &str, protocol: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self::between(source.parse().unwrap(), destination.parse().unwrap(), protocol, payload)
    }

    pub fn between(source: IpAddr, destination: IpAddr, protocol: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            source,
            destination,
            protocol,
            payload: payload.into(),
            hop_limit: 64,
            fragment: None,
            options: 0,
            extensions: Vec::new(),
            tags: Vec::new(),
        }
    }

    pub fn tcp(source: &str, destination: &str) -> Self {
        Self::new(
            source,
            destination,
            TCP,
            [0x30, 0x39, 0, 22].into_iter().chain([0; 16]).collect::<Vec<_>>(),
        )
    }

    pub fn udp(source: &str, destination: &str, ports: (u16, u16), payload: &[u8]) -> Self {
        Self::new(source, destination, UDP, udp(ports, payload))
    }

    pub fn esp(source: &str, destination: &str, spi: u32) -> Self {
        Self::new(source, destination, ESP, esp(spi))
    }

    pub fn ah(source: &str, destination: &str, spi: u32) -> Self {
        Self::new(source, destination, AH, [&[6, 4, 0, 0][..], &esp(spi)].concat())
    }

    pub fn fragment(mut self, more: bool, offset: u16) -> Self {
        self.fragment = Some((more, offset));
        self
    }

    pub fn options(mut self, bytes: usize) -> Self {
        self.options = bytes;
        self
    }

    pub fn extensions(mut self, extensions: &[(u8, u8)]) -> Self {
        self.extensions = extensions.to_vec();
        self
    }

    pub fn tags(mut self, tags: &[u16]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    pub fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (identifier, tag) in self.tags.iter().enumerate() {
            frame.extend(tag.to_be_bytes());
            frame.extend((100 + identifier as u16).to_be_bytes());
        }
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let header = 20 + self.options;
                let (more, offset) = self.fragment.unwrap_or((false, 0));
                frame.extend([0x40 | (header / 4) as u8, 0]);
                frame.extend(((header + self.payload.len()) as u16).to_be_bytes());
                frame.extend([0x12, 0x34]);
                frame.extend((u16::from(more) << 13 | offset).to_be_bytes());
                frame.extend([self.hop_limit, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(std::iter::repeat_n(1, self.options));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd]);
                let mut chain: Vec<u8> = Vec::new();
                let kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).collect();
                let after_extensions = if self.fragment.is_some() { FRAGMENT } else { self.protocol };
                for (index, (_, length)) in self.extensions.iter().enumerate() {
                    chain.extend([kinds.get(index + 1).copied().unwrap_or(after_extensions), *length]);
                    // PadN over the rest of the header.
                    chain.extend([1, 4 + (length % 32) * 8]);
                    chain.extend(std::iter::repeat_n(0, 4 + usize::from(*length) * 8));
                }
                if let Some((more, offset)) = self.fragment {
                    chain.extend([self.protocol, 0]);
                    chain.extend((offset << 3 | u16::from(more)).to_be_bytes());
                    chain.extend([0, 0, 0x12, 0x34]);
                }
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(((chain.len() + self.payload.len()) as u16).to_be_bytes());
                frame.extend([kinds.first().copied().unwrap_or(after_extensions), self.hop_limit]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(chain);
            }
            mixed => panic!("{mixed:?}"),
        }
        frame.extend(&self.payload);
        frame
    }
}

pub fn udp((source, destination): (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

pub fn esp(spi: u32) -> Vec<u8> {
    spi.to_be_bytes().into_iter().chain([0, 0, 0, 1]).chain([0xa5; 32]).collect()
}

/// Extension headers that an IPv6 packet can have many of: hop-by-hop first, then destination options.
pub fn long_chain(headers: usize) -> Vec<(u8, u8)> {
    (0..headers).map(|index| if index == 0 { (HOP_BY_HOP, 0) } else { (60, (index % 3) as u8) }).collect()
}
