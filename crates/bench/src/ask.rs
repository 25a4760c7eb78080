//! A small request of its own: its answer is read whole, within a bound.

use std::time::Duration;

use tokio::time::timeout;

use crate::clock::Clock;
use crate::connect::Connector;
use crate::link::Link;

/// Send `request` over a new connection: (status, body). `what` names the answer in an error, which is a phrase.
pub(crate) async fn ask(
    connector: &Connector,
    request: &[u8],
    what: &str,
    most_bytes: usize,
    limit: Duration,
) -> Result<(u16, Vec<u8>), String> {
    let work = async {
        let mut link = Link::try_from(connector.open(Clock::start()).await?)?;
        link.send(request).await?;
        let head = link.head().await.map_err(|e| e.into_reason())?;
        let mut answer = Vec::new();
        link.body(&head, |data, _| {
            if answer.len() + data.len() > most_bytes {
                return Err(format!("the answer of {what} is over {most_bytes} bytes"));
            }
            answer.extend_from_slice(data);
            Ok(())
        })
        .await?;
        Ok((head.status, answer))
    };
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(slow(what, limit)))
}

/// The error where the time was up.
pub(crate) fn slow(what: &str, limit: Duration) -> String {
    format!("no answer of {what} within {} s", limit.as_secs())
}
