//! A process to kill: attaches steering as a gateway would, says so, and waits for its end.
//!
//! `steer-loader BPFFS INSTANCE auto|native|skb NAME:IFINDEX:protected|unprotected ...`

use std::io::Write;

use adit_engine::io::steering::{
    AttachMode, CoverPrefix, PortSpec, Steering, SteeringConfig, SteeringTables,
};
use adit_engine::policy::cover::Prefix;
use adit_engine::route::Side;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bpffs, instance, mode, ports @ ..] = arguments.as_slice() else {
        return Err("see the source".into());
    };
    let mode = match mode.as_str() {
        "auto" => AttachMode::Auto,
        "native" => AttachMode::Native,
        "skb" => AttachMode::Skb,
        other => return Err(format!("no mode {other}").into()),
    };
    let mut specs = Vec::new();
    for port in ports {
        let parts: Vec<&str> = port.split(':').collect();
        let [name, ifindex, side] = parts[..] else { return Err(format!("no port {port}").into()) };
        let side = if side == "protected" { Side::Protected } else { Side::Unprotected };
        specs.push(PortSpec { name: name.into(), ifindex: ifindex.parse()?, side, vlans: Vec::new() });
    }

    let mut steering =
        Steering::open(&SteeringConfig { bpffs: bpffs.into(), instance: instance.clone(), force: false })?;
    for spec in &specs {
        steering.load(spec)?;
    }
    let cover = |network: [u8; 4]| {
        let prefix = Prefix { network: network.into(), length: 16 };
        vec![CoverPrefix { prefix, protect: true, discard: false, bypass: false }]
    };
    let (local, remote) = (cover([10, 1, 0, 0]), cover([10, 2, 0, 0]));
    steering.set_cover(&SteeringTables { local, remote, ..Default::default() })?;
    steering.set_own_addresses(&["10.1.0.1".parse()?, "192.0.2.1".parse()?])?;
    for spec in &specs {
        let attached = steering.switch(spec.ifindex, mode)?;
        let how = if attached.taken_over { "taken-over" } else { "new" };
        println!("{} {} {how}", spec.name, attached.mode.name());
    }
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}
