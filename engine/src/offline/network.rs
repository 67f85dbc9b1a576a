//! What the kernel would say of interfaces, routes and neighbours, from a file or made up.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::control::settings::Settings;
use crate::policy::Spd;
use crate::policy::cover::Cover;
use crate::route::{LARGEST_MTU, Network, NetworkBuilder, Port, PortId, RouteTarget, Side};
use crate::wire::ethernet::MacAddress;

/// The file of `--network`: only what differs from what is made up.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkFile {
    port: Vec<PortTable>,
    route: Vec<RouteTable>,
    neighbour: Vec<NeighbourTable>,
}

/// `[[port]]`: an interface of the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortTable {
    name: String,
    mac: Option<String>,
    mtu: Option<u32>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
}

/// `[[route]]`: `to` a prefix, by `port`, `via` a gateway on its link.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteTable {
    to: String,
    port: String,
    via: Option<IpAddr>,
}

/// `[[neighbour]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NeighbourTable {
    port: String,
    address: IpAddr,
    mac: String,
}

/// The MTU of a port that the file gives none.
const DEFAULT_MTU: u32 = 1500;

/// Reads the file.
///
/// # Errors
/// The parser's, with the line.
pub fn parse(text: &str) -> Result<NetworkFile, String> {
    toml::from_str(text).map_err(|error| error.to_string())
}

/// The picture for `settings`. Ports are the configuration's interfaces, in its order. Without routes of the file's
/// own, what the policies protect or discard on the inside is on the link of the first protected port, and
/// everything else is by the first unprotected port. Tunnel endpoints are the gateway's own addresses.
///
/// # Errors
/// What the file says and the configuration does not have.
pub fn build(file: &NetworkFile, settings: &Settings, spd: &Spd) -> Result<Network, String> {
    let mut builder = NetworkBuilder::new();
    let mut ids = HashMap::new();
    for (index, interface) in settings.interfaces.iter().enumerate() {
        let table = file.port.iter().find(|table| table.name == interface.name);
        let mac = match table.and_then(|table| table.mac.as_deref()) {
            Some(text) => mac_address(text)?,
            None => MacAddress([2, 0xad, 0, 0, 0, index as u8 + 1]),
        };
        let mtu = table.and_then(|table| table.mtu).unwrap_or(DEFAULT_MTU);
        if mtu > LARGEST_MTU {
            return Err(format!("mtu of {}: expected at most {LARGEST_MTU}, found {mtu}", interface.name));
        }
        let id = builder.port(Port {
            name: interface.name.as_str().into(),
            side: interface.side,
            ifindex: index as u32 + 1,
            mac,
            mtu,
            up: true,
            addresses: table.map(|table| table.addresses.clone()).unwrap_or_default(),
            vlan: interface.vlan,
        });
        ids.insert(interface.name.as_str(), id);
    }
    let port = |name: &str| {
        ids.get(name).copied().ok_or_else(|| format!("{name}: expected an interface of the configuration"))
    };
    for table in &file.port {
        port(&table.name)?;
    }
    for tunnel in &settings.tunnels {
        builder.local(tunnel.settings.local);
    }
    for table in &file.neighbour {
        builder.neighbour(port(&table.port)?, table.address, mac_address(&table.mac)?);
    }
    for table in &file.route {
        let (network, length) = prefix(&table.to)?;
        let id = port(&table.port)?;
        let target = table.via.map_or(RouteTarget::OnLink(id), |via| RouteTarget::Gateway(id, via));
        builder.route(network, length, 0, target);
    }
    if file.route.is_empty() {
        let first = |side| settings.interfaces.iter().position(|interface| interface.side == side);
        if let Some(inside) = first(Side::Protected) {
            for prefix in Cover::of(spd).local {
                builder.route(prefix.network, prefix.length, 0, RouteTarget::OnLink(PortId(inside as u16)));
            }
        }
        if let Some(outside) = first(Side::Unprotected) {
            for any in ["0.0.0.0", "::"] {
                let any = any.parse().expect("an address");
                // Behind the inside's routes where a policy covers everything.
                builder.route(any, 0, 1, RouteTarget::OnLink(PortId(outside as u16)));
            }
        }
    }
    Ok(builder.build(1))
}

/// The address of a neighbour nobody described: made from its IP address, so that it is the same in every run.
pub fn made_up_neighbour(address: IpAddr) -> MacAddress {
    let tail: [u8; 4] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => *address.octets().last_chunk().expect("16 bytes"),
    };
    MacAddress([2, 0xae, tail[0], tail[1], tail[2], tail[3]])
}

fn mac_address(text: &str) -> Result<MacAddress, String> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    bytes.map(MacAddress).ok_or_else(|| format!("{text}: expected a MAC address as 02:00:5e:00:53:01"))
}

fn prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let (network, length) = text.split_once('/').unwrap_or((text, ""));
    let network: Option<IpAddr> = network.parse().ok();
    let full = if network.is_some_and(|network| network.is_ipv4()) { 32 } else { 128 };
    let length = if length.is_empty() { Some(full) } else { length.parse().ok() };
    match (network, length) {
        (Some(network), Some(length)) if length <= full => Ok((network, length)),
        _ => Err(format!("{text}: expected a prefix as 10.2.0.0/16")),
    }
}
