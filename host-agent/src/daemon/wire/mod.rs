//! Messages between agents after the handshake; `docs/protocol.md` has the details.

mod bounds;
pub(super) mod inquiry;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use self::inquiry::Inquiry;
use crate::capabilities::TRANSPORT;
use crate::job::{HostFacts, Needs, Presence};
use crate::session::{Answer, Order, SessionId, Status};

pub(super) use bounds::read;

/// Version of this protocol.
pub(super) const VERSION: u32 = 1;
/// Most bytes of a probe.
pub(super) const PROBE_MOST: u64 = 64 << 20;
bitflags! {
    /// [`Parameters::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Flags: u32 {
        /// The guest runs while its memory is copied.
        const LIVE = 1 << 0;
    }
}

/// Longest name of a domain, in bytes.  With the toolstack's additions it is still a file name.
const NAME_MOST: usize = 200;

/// The first message on a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Hello {
    /// Requests and answers.
    Control {
        /// [`VERSION`].
        version: u32,
    },
    /// One connection of a stream.
    Data {
        /// Of this session.
        session: SessionId,
        /// The ticket from the answer to step 1; good once for each lane.
        ticket: SessionId,
        /// The number of this connection, from 0.
        lane: u8,
    },
}

/// A request of the source's agent on a control connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToPeer {
    /// Step 0.
    Meet {
        /// The caller's capabilities, as XML.
        capabilities: String,
        /// The parameters of the migration.
        parameters: Parameters,
    },
    /// Whether the guest could be reserved; has no lasting effect.
    Check(Box<Needs>),
    /// This many bytes follow, to measure the network.
    Probe {
        /// At most [`PROBE_MOST`].
        bytes: u64,
    },
    /// Asks for the state of an end of a session; has no effect.
    Inquire(Inquiry),
    /// A step of a session: `destination(step, cookie)`.
    Call {
        /// Of this session.
        session: SessionId,
        /// Grows with every call on this connection.
        call: u64,
        /// Step and cookie.
        order: Order,
    },
}

/// The parameters of the proposal of 2007.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Parameters {
    /// The transport of the stream: [`TRANSPORT`], and the destination's address as the caller knows it.
    pub(super) uri: Option<String>,
    /// Name at the destination.
    pub(super) dname: Option<String>,
    /// Bandwidth in bytes per second.
    pub(super) resource: Option<u64>,
    /// Bits of [`Flags`].
    pub(super) flags: u32,
}

impl Parameters {
    /// Checks that this host supports all of it.
    ///
    /// # Errors
    /// What it does not support.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_ours = |uri: &String| {
            let parts = uri.split_once("://");
            parts.is_some_and(|(scheme, host)| scheme == TRANSPORT && !host.is_empty())
        };
        if !self.uri.as_ref().is_none_or(is_ours) {
            return Err(format!("unsupported URI: it must be {TRANSPORT}://HOST"));
        }
        if let Some(name) = &self.dname {
            check_name(name)?;
        }
        if self.resource == Some(0) {
            return Err("the bandwidth must not be 0".to_owned());
        }
        match self.flags & !Flags::all().bits() {
            0 => Ok(()),
            unknown => Err(format!("unknown flags {unknown:#x}")),
        }
    }
}

/// Checks a domain's name, which becomes part of file names and commands.
///
/// # Errors
/// Why it is not valid.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_MOST {
        return Err(format!(
            "a domain's name has 1 to {NAME_MOST} bytes, not {}",
            name.len()
        ));
    }
    if name.starts_with('-') || name.contains(|c: char| c == '/' || c.is_control()) {
        return Err(format!(
            "{name:?} is not a domain name: slashes, control characters and a leading hyphen are not allowed"
        ));
    }
    Ok(())
}

/// What the source needs to know about the stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct StreamOffer {
    /// For the data connections.
    pub(super) ticket: SessionId,
    /// The destination can build the domain while memory still arrives
    /// ([`Sink::builds_early`](crate::job::Sink::builds_early)).
    pub(super) builds_early: bool,
}

/// An answer of the destination's agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromPeer {
    /// To [`Hello`].
    Welcome,
    /// To [`ToPeer::Meet`].
    Met {
        /// As XML.
        capabilities: String,
        /// The host.
        facts: HostFacts,
    },
    /// To [`ToPeer::Check`]: it can.
    Checked,
    /// To [`ToPeer::Probe`]: everything has arrived.
    Probed,
    /// To [`ToPeer::Inquire`].
    Standing {
        /// The last record of that end's journal; `None` if there is no such session.
        state: Option<String>,
        /// The guest's copy on that host.
        copy: Presence,
    },
    /// To [`ToPeer::Call`].
    Reply {
        /// The call's number.
        call: u64,
        /// Which of the three answers it is.
        status: Status,
        /// The cookie.
        cookie: Answer,
        /// With the answer to step 1.
        stream: Option<StreamOffer>,
    },
    /// To anything: no, and it had no effect.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::{Parameters, check_name};

    #[test]
    fn parameters_that_cannot_be_had_are_refused() {
        let good = Parameters {
            uri: Some("unmoved+tls://192.0.2.2:7711".to_owned()),
            dname: Some("a guest".to_owned()),
            resource: Some(1),
            flags: 1,
        };
        good.check().unwrap();
        Parameters::default().check().unwrap();
        let refused = |wrong: Parameters| wrong.check().unwrap_err();
        for uri in ["tcp://192.0.2.2:1", "unmoved+tls", "unmoved+tls://", ""] {
            let uri = Some(uri.to_owned());
            assert!(
                refused(Parameters {
                    uri,
                    ..good.clone()
                })
                .contains("URI")
            );
        }
        let dname = Some("../x".to_owned());
        assert!(
            refused(Parameters {
                dname,
                ..good.clone()
            })
            .contains("../x")
        );
        let resource = Some(0);
        assert!(
            refused(Parameters {
                resource,
                ..good.clone()
            })
            .contains("bandwidth")
        );
        assert!(refused(Parameters { flags: 3, ..good }).contains("0x2"));
    }

    #[test]
    fn names_are_such_that_files_can_have_them() {
        for good in ["a", "Web 1", "17", "gäst", &"x".repeat(200)] {
            check_name(good).unwrap();
        }
        for wrong in ["", "-x", "a/b", "a\nb", "a\0", &"x".repeat(201)] {
            assert!(check_name(wrong).is_err(), "{wrong:?}");
        }
    }
}
