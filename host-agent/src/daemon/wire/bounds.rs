//! Limits what a peer can send: each text of each message has a maximum length and can be shown safely.
//!
//! [`read`] is the only way in.  Text for people (a reason) is cleaned; text for programs (a path, a name)
//! must be clean.  Each message is destructured completely here, so that a new field has a limit or does not
//! compile.

use std::io::{self, Read};

use serde::de::DeserializeOwned;

use super::{FromPeer, Hello, Inquiry, NAME_MOST, Parameters, StreamOffer, ToPeer};
use crate::job::{HostFacts, Needs};
use crate::session::{Answer, Order, Request};
use crate::storage::Storage;
use crate::text::{REASON_MOST, clean, is_fit};
use crate::transport::frame::{read_message, wrong};

/// Most disks of a guest; the toolstack can name fewer.
const DISKS_MOST: usize = 512;
/// Longest path of a disk; longer ones cannot be opened.
const PATH_MOST: usize = 4095;
/// Longest identity of a storage.
const IDENTITY_MOST: usize = 2000;
/// Longest configuration.  Real ones have a few KiB, and a few hundred bytes for each disk.
const CONFIG_MOST: usize = 512 << 10;
/// Longest capabilities.
const CAPABILITIES_MOST: usize = 64 << 10;
/// Longest of all other texts: a UUID, a version, a URI.
const WORD_MOST: usize = 300;

/// A message from a peer.
pub(in crate::daemon) trait Arrived: DeserializeOwned {
    /// Cleans its reasons.
    ///
    /// # Errors
    /// Names the text that is too long or contains invisible characters.
    fn bounded(self) -> Result<Self, String>;
}

/// Reads a message of at most `most` bytes from a peer.
///
/// # Errors
/// If it is longer or of another kind, has an invalid field, or the peer is gone.
pub(in crate::daemon) fn read<T: Arrived>(
    from: &mut (impl Read + ?Sized),
    most: usize,
) -> io::Result<T> {
    read_message::<T>(from, most)?.bounded().map_err(wrong)
}

fn fit(what: &str, text: &str, most: usize) -> Result<(), String> {
    if is_fit(text, most) {
        return Ok(());
    }
    Err(format!(
        "{what} is longer than {most} bytes, or contains invisible characters: {}",
        clean(text, 100)
    ))
}

fn short(what: &str, length: usize, most: usize) -> Result<(), String> {
    if length <= most {
        return Ok(());
    }
    Err(format!("{what} has {length} entries, more than {most}"))
}

fn reason(text: &str) -> String {
    clean(text, REASON_MOST)
}

impl Arrived for Hello {
    fn bounded(self) -> Result<Self, String> {
        match &self {
            Self::Control { version: _ } => {}
            Self::Data {
                session: _,
                ticket: _,
                lane: _,
            } => {}
        }
        Ok(self)
    }
}

impl Arrived for ToPeer {
    fn bounded(self) -> Result<Self, String> {
        Ok(match self {
            Self::Meet {
                capabilities,
                parameters,
            } => {
                short("capabilities", capabilities.len(), CAPABILITIES_MOST)?;
                let Parameters {
                    uri,
                    dname,
                    resource: _,
                    flags: _,
                } = &parameters;
                fit("the URI", uri.as_deref().unwrap_or_default(), WORD_MOST)?;
                // The name is checked later, and the answer says so.
                short("a name", dname.as_ref().map_or(0, String::len), WORD_MOST)?;
                Self::Meet {
                    capabilities,
                    parameters,
                }
            }
            Self::Check(needs) => {
                of_needs(&needs)?;
                Self::Check(needs)
            }
            Self::Probe { bytes } => Self::Probe { bytes },
            Self::Inquire(inquiry) => {
                let Inquiry {
                    session: _,
                    end: _,
                    uuid,
                } = &inquiry;
                fit("a UUID", uuid, WORD_MOST)?;
                Self::Inquire(inquiry)
            }
            Self::Call {
                session,
                call,
                order,
            } => Self::Call {
                session,
                call,
                order: of_order(order)?,
            },
        })
    }
}

impl Arrived for FromPeer {
    fn bounded(self) -> Result<Self, String> {
        Ok(match self {
            Self::Met {
                capabilities,
                facts,
            } => {
                short("capabilities", capabilities.len(), CAPABILITIES_MOST)?;
                let HostFacts {
                    xen_version,
                    free_memory_bytes: _,
                    cpus: _,
                    stream_version: _,
                } = &facts;
                fit("the version of Xen", xen_version, WORD_MOST)?;
                Self::Met {
                    capabilities,
                    facts,
                }
            }
            Self::Reply {
                call,
                status,
                cookie,
                stream,
            } => {
                if let Some(StreamOffer {
                    ticket: _,
                    builds_early: _,
                }) = &stream
                {}
                Self::Reply {
                    call,
                    status,
                    cookie: of_answer(cookie),
                    stream,
                }
            }
            Self::Standing { state, copy } => {
                let word = state.as_deref().unwrap_or_default();
                fit("a state", word, WORD_MOST)?;
                Self::Standing { state, copy }
            }
            Self::Refused(why) => Self::Refused(reason(&why)),
            short @ (Self::Welcome | Self::Checked | Self::Probed) => short,
        })
    }
}

fn of_order(order: Order) -> Result<Order, String> {
    Ok(match order {
        Order::Reserve(request) => {
            let Request {
                needs,
                leave_paused: _,
                parallel: _,
                seal: _,
            } = &*request;
            of_needs(needs)?;
            Order::Reserve(request)
        }
        Order::Failed(why) => Order::Failed(reason(&why)),
        short @ (Order::Receive(_) | Order::TakeOver(_) | Order::Retire) => short,
    })
}

fn of_answer(answer: Answer) -> Answer {
    match answer {
        Answer::NotYet(why) => Answer::NotYet(reason(&why)),
        Answer::Discarded(why) => Answer::Discarded(reason(&why)),
        Answer::Lost(why) => Answer::Lost(reason(&why)),
        Answer::Refused(why) => Answer::Refused(reason(&why)),
        short @ (Answer::Complete | Answer::Continue | Answer::Unknown) => short,
    }
}

fn of_needs(needs: &Needs) -> Result<(), String> {
    let Needs {
        name,
        destination_name,
        uuid,
        source_domid: _,
        memory_bytes: _,
        vcpus: _,
        disks,
        storage,
        xen_version,
        config,
    } = needs;
    fit("a name", name, NAME_MOST)?;
    // The name is checked later, and the answer says so.
    short("a name", destination_name.len(), WORD_MOST)?;
    fit("a UUID", uuid, WORD_MOST)?;
    fit("the version of Xen", xen_version, WORD_MOST)?;
    short("the configuration", config.len(), CONFIG_MOST)?;
    short("the list of disks", disks.len(), DISKS_MOST)?;
    for disk in disks {
        fit("a disk", disk, PATH_MOST)?;
    }
    short("the list of storage", storage.len(), DISKS_MOST)?;
    for Storage {
        disk,
        identity,
        bytes: _,
        is_vouched: _,
    } in storage
    {
        fit("a disk", disk, PATH_MOST)?;
        let identity = identity.as_deref().unwrap_or_default();
        fit("a storage's identity", identity, IDENTITY_MOST)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Arrived, FromPeer, ToPeer, read};
    use crate::job::Needs;
    use crate::transport::frame::write_message;

    fn arrive<T: Arrived>(message: &Value) -> Result<T, String> {
        let mut bytes = Vec::new();
        write_message(&mut bytes, message).unwrap();
        read(&mut &bytes[..], 4 << 20).map_err(|error| error.to_string())
    }

    fn needs() -> Value {
        let needs = Needs {
            destination_name: "web1".to_owned(),
            disks: vec!["/dev/vg/web1".to_owned()],
            ..Needs::default()
        };
        serde_json::to_value(needs).unwrap()
    }

    #[test]
    fn a_reason_is_made_fit_whatever_it_comes_with() {
        let nasty = format!("\u{1b}[2J{}", "x".repeat(2_500_000));
        let session = "0".repeat(32);
        let call = json!({"call": {"session": session, "call": 1, "order": {"failed": nasty}}});
        let text = format!("{:?}", arrive::<ToPeer>(&call).unwrap());
        assert!(text.len() < 2000 && !text.contains('\u{1b}'), "{text}");
        for answer in ["not-yet", "discarded", "lost", "refused"] {
            let reply = json!({"reply": {
                "call": 1, "status": "failed", "stream": null,
                "cookie": {"answer": answer, "reason": nasty},
            }});
            let text = format!("{:?}", arrive::<FromPeer>(&reply).unwrap());
            assert!(text.len() < 2000 && !text.contains('\u{1b}'), "{text}");
        }
        let refused = arrive::<FromPeer>(&json!({"refused": nasty})).unwrap();
        assert!(format!("{refused:?}").len() < 2000);
    }

    #[test]
    fn what_a_program_reads_has_to_be_fit() {
        arrive::<ToPeer>(&json!({"check": needs()})).unwrap();
        let long = "x".repeat(5000);
        let many: Vec<_> = (0..600).map(|number| format!("/dev/{number}")).collect();
        for (key, value) in [
            ("name", json!("a\u{202e}b")),
            ("name", json!(long)),
            ("destination_name", json!(long)),
            ("uuid", json!(long)),
            ("xen_version", json!("4\n17")),
            ("disks", json!([long])),
            ("disks", json!(["/dev/\u{1b}[2J"])),
            ("disks", json!(many)),
            ("config", json!(vec![32; 600 << 10])),
            (
                "storage",
                json!([{"disk": long, "identity": null, "bytes": null}]),
            ),
            (
                "storage",
                json!([{"disk": "", "identity": long, "bytes": null}]),
            ),
        ] {
            let mut needs = needs();
            needs[key] = value;
            let why = arrive::<ToPeer>(&json!({"check": needs})).unwrap_err();
            assert!(why.len() < 500 && !why.contains('\u{1b}'), "{key}: {why}");
        }
        let facts =
            json!({"xen_version": long, "free_memory_bytes": 0, "cpus": 1, "stream_version": 3});
        arrive::<FromPeer>(&json!({"met": {"capabilities": "", "facts": facts}})).unwrap_err();
        let inquiry = |uuid: &str| json!({"inquire": {"session": "0".repeat(32), "end": "source", "uuid": uuid}});
        arrive::<ToPeer>(&inquiry("1-2")).unwrap();
        let standing = |state: &str| json!({"standing": {"state": state, "copy": "absent"}});
        arrive::<FromPeer>(&standing("handed over")).unwrap();
        for text in [&*long, "\u{1b}[2J"] {
            arrive::<ToPeer>(&inquiry(text)).unwrap_err();
            arrive::<FromPeer>(&standing(text)).unwrap_err();
        }
    }

    /// What a parser complains of has the peer's own words in it.
    #[test]
    fn what_is_no_message_is_not_repeated_at_length() {
        let nasty = format!("\u{1b}[2J{}", "x".repeat(1_000_000));
        let why = arrive::<ToPeer>(&json!({ nasty: 1 })).unwrap_err();
        assert!(why.len() < 500 && !why.contains('\u{1b}'), "{why}");
    }
}
