//! What happens, told to whoever listens: `Monitor` on the control socket.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::audit::DropRecord;
use crate::wire::Spi;

/// Events that a listener may be behind. One that is slower is told how many it missed.
const BACKLOG: usize = 256;

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Event {
    /// "listening" (the first of every stream), "soft_lifetime", "hard_lifetime", "sa_replaced" (by the SA that it
    /// names), "sa_retired", "peer_moved", "dropped" (to who asked for
    /// these) or "missed".
    pub event: String,
    /// The tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// "in" or "out".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// SPI, as 0x00001001.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spi: Option<String>,
    /// Of a peer that moved: where it was, address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// And where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Packets that were dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<DropRecord>,
    /// How many events this listener was too slow for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
}

impl Event {
    /// What every stream begins with: from here on nothing is lost without a word.
    pub fn listening() -> Self {
        Self { event: "listening".into(), ..Self::default() }
    }

    /// Of an SA.
    pub fn of_sa(event: &str, tunnel: &str, direction: &str, spi: Spi) -> Self {
        Self {
            event: event.into(),
            tunnel: Some(tunnel.into()),
            direction: Some(direction.into()),
            spi: Some(spi.to_string()),
            ..Self::default()
        }
    }
}

/// Where events come from, and where listeners get them.
pub struct Events {
    sas: broadcast::Sender<Event>,
    /// Apart, so that whoever floods the gateway makes nobody miss anything else.
    drops: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sas: broadcast::Sender::new(BACKLOG), drops: broadcast::Sender::new(BACKLOG) }
    }
}

impl Events {
    /// Tells everybody who listens; never waits.
    pub fn tell(&self, event: Event) {
        // Fails when nobody does.
        let _ = self.sas.send(event);
    }

    /// Tells those who want to hear of dropped packets.
    pub(super) fn tell_drop(&self, record: &DropRecord) {
        if self.drops.receiver_count() > 0 {
            let dropped = Some(record.clone());
            let _ = self.drops.send(Event { event: "dropped".into(), dropped, ..Event::default() });
        }
    }

    /// Listens from now on, to what is dropped too if `drops`.
    pub fn listen(&self, drops: bool) -> Listener {
        Listener { sas: self.sas.subscribe(), drops: drops.then(|| self.drops.subscribe()) }
    }
}

/// One who listens.
pub struct Listener {
    sas: broadcast::Receiver<Event>,
    drops: Option<broadcast::Receiver<Event>>,
}

impl Listener {
    /// The next event; `None` when there will be none. Nothing is lost when it is not waited for to the end.
    pub async fn next(&mut self) -> Option<Event> {
        let Self { sas, drops } = self;
        let dropped = async {
            match drops {
                Some(drops) => drops.recv().await,
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            biased;
            event = sas.recv() => event,
            event = dropped => event,
        };
        match next {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Some(Event { event: "missed".into(), missed: Some(missed), ..Event::default() })
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
