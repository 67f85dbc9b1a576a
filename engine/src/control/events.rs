//! What happens, told to whoever listens: `Monitor` on the control socket.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::wire::Spi;

/// Events that a listener may be behind. One that is slower is told how many it missed.
const BACKLOG: usize = 256;

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Event {
    /// "listening" (the first of every stream), "soft_lifetime", "hard_lifetime", "sa_replaced" (by the SA that it
    /// names), "sa_retired", "peer_moved" or "missed".
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
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    /// Tells everybody who listens; never waits.
    pub fn tell(&self, event: Event) {
        // Fails when nobody does.
        let _ = self.0.send(event);
    }

    /// Listens from now on.
    pub fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

/// One who listens.
pub struct Listener(broadcast::Receiver<Event>);

impl Listener {
    /// The next event; `None` when there will be none. Nothing is lost when it is not waited for to the end.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Some(Event { event: "missed".into(), missed: Some(missed), ..Event::default() })
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
