//! Accepts connections from other agents.
//!
//! A peer has ten seconds to identify itself and to say what it wants; [`handshakes`](super::handshakes)
//! limits their number.  Everything refused is logged with its origin, and has no effect on anything else.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::handshakes::Handshakes;
use super::incoming::Incoming;
use super::wire::{
    FromPeer, Hello, PROBE_MOST, Parameters, StreamOffer, ToPeer, VERSION, check_name, read,
};
use super::{Daemon, random, spawn, unaccepted};
use crate::capabilities::Capabilities;
use crate::job::{Error, Needs, Result};
use crate::session::{Answer, Order, SessionId, Standing};
use crate::text::{REASON_MOST, clean};
use crate::transport::frame::{MESSAGE_MOST, write_message, wrong};
use crate::transport::tls::Accepted;
use crate::transport::{Socket, Watch};

/// Most control connections of one peer: one for each guest in progress, and a few for requests without
/// effect.
const CONTROLS_MOST: usize = 1024;
/// Longest first message, which comes from a host that is not trusted yet.
const HELLO_MOST: usize = 1 << 10;
/// Longest silence on a connection.  A transfer may last long, and a guest may take its time to suspend.  TCP
/// keepalive notices a dead host much earlier.
const SILENCE: Duration = Duration::from_secs(24 * 3600);
/// How often the discard for a lost source is tried.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves until the program ends.
pub(super) fn serve(daemon: &Arc<Daemon>, listener: &TcpListener) {
    let handshakes = Handshakes::new(literal(daemon));
    look_up(daemon, &handshakes);
    for stream in listener.incoming() {
        let Ok(stream) = stream.inspect_err(unaccepted) else {
            continue;
        };
        let Ok(from) = stream.peer_addr() else {
            continue;
        };
        let stream = Arc::new(stream);
        let (daemon, handshakes) = (daemon.clone(), handshakes.clone());
        let admitted = handshakes.admit(&stream, from);
        let served = spawn("peer", move || {
            let greeted = greet(&daemon, stream);
            drop(admitted);
            match greeted {
                Ok((stream, host, hello)) => {
                    handshakes.know(from.ip());
                    talk(&daemon, from, stream, &host, hello);
                }
                Err(error) => refused(&daemon, from, &error.to_string()),
            }
        });
        if let Err(error) = served {
            log::error!("{from}: {error}");
        }
    }
}

/// Addresses of peers that need no name resolution.
fn literal(daemon: &Daemon) -> impl Iterator<Item = IpAddr> {
    let peers = daemon.config.peers.iter();
    peers.filter_map(|peer| Some(peer.address.parse::<SocketAddr>().ok()?.ip()))
}

/// Resolves the names of the other peers, which may take a while.  A peer that is not found becomes known
/// when it shows its certificate.
fn look_up(daemon: &Arc<Daemon>, handshakes: &Arc<Handshakes>) {
    let (daemon, handshakes) = (daemon.clone(), handshakes.clone());
    let looking = spawn("names", move || {
        for peer in &daemon.config.peers {
            for address in peer.address.to_socket_addrs().into_iter().flatten() {
                handshakes.know(address.ip());
            }
        }
    });
    if let Err(error) = looking {
        log::warn!("{error}");
    }
}

fn refused(daemon: &Daemon, from: SocketAddr, why: &str) {
    daemon.refusals.tell(&daemon.audit, &from.to_string(), why);
}

/// Identifies the peer and reads its first message.
fn greet(daemon: &Daemon, stream: Arc<TcpStream>) -> io::Result<(Accepted, String, Hello)> {
    let socket = Socket::new(stream, Arc::new(Watch::default()))?;
    let peers = daemon.config.peers.iter().map(|peer| peer.name.as_str());
    let (mut stream, host) = daemon.identity.accept(socket, peers)?;
    let hello = read(&mut stream, HELLO_MOST)?;
    Ok((stream, host, hello))
}

fn talk(daemon: &Arc<Daemon>, from: SocketAddr, stream: Accepted, host: &str, hello: Hello) {
    let result = match hello {
        Hello::Control { version: VERSION } => control(daemon, stream, host),
        Hello::Control { version } => {
            let why = format!("protocol version {version} is not supported");
            refuse(stream, why)
        }
        Hello::Data {
            session,
            ticket,
            lane,
        } => data(daemon, stream, host, session, ticket, lane),
    };
    if let Err(error) = result {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {}
            _ => refused(daemon, from, &format!("{host}: {error}")),
        }
    }
}

/// Refuses, and returns the reason for the log.
fn refuse(mut stream: Accepted, why: String) -> io::Result<()> {
    write_message(&mut stream, &FromPeer::Refused(why.clone()))?;
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

fn data(
    daemon: &Daemon,
    mut stream: Accepted,
    host: &str,
    session: SessionId,
    ticket: SessionId,
    lane: u8,
) -> io::Result<()> {
    let found = daemon.incoming.lock().get(&session).cloned();
    let place = found.ok_or("there is no such session").and_then(|session| {
        let watch = session.take_lane(host, ticket, lane)?;
        Ok((session, watch))
    });
    match place {
        Ok((session, watch)) => {
            stream.sock.set_watch(watch);
            stream.sock.set_deadline(None);
            stream.sock.set_silence(SILENCE);
            write_message(&mut stream, &FromPeer::Welcome)?;
            session.add_lane(ticket, lane, Box::new(stream));
            Ok(())
        }
        Err(why) => refuse(stream, why.to_owned()),
    }
}

fn control(daemon: &Arc<Daemon>, mut stream: Accepted, host: &str) -> io::Result<()> {
    // Counts this connection until it is dropped.
    let counted = {
        let mut all = daemon.controls.lock();
        all.entry(host.to_owned()).or_default().clone()
    };
    if Arc::strong_count(&counted) > CONTROLS_MOST + 1 {
        let why = format!("{host} has {CONTROLS_MOST} control connections already");
        return refuse(stream, why);
    }
    write_message(&mut stream, &FromPeer::Welcome)?;
    stream.sock.set_deadline(None);
    stream.sock.set_silence(SILENCE);
    let mut sessions = Vec::new();
    let result = calls(daemon, &mut stream, host, &mut sessions);
    // A peer that began sessions here and disconnects gives them up, if it still can.
    loop {
        sessions.retain(|session| {
            let found = daemon.incoming.lock().get(session).cloned();
            found.is_some_and(|session| session.silent())
        });
        if sessions.is_empty() {
            return result;
        }
        thread::sleep(AGAIN);
    }
}

fn calls(
    daemon: &Arc<Daemon>,
    connection: &mut Accepted,
    host: &str,
    sessions: &mut Vec<SessionId>,
) -> io::Result<()> {
    let mut last_call = 0;
    loop {
        let answer = match read(connection, MESSAGE_MOST)? {
            ToPeer::Meet {
                capabilities,
                parameters,
            } => {
                log::debug!("{host} wants {parameters:?}");
                let goes_on = daemon
                    .refuse_if_stopping()
                    .map_err(|error| error.to_string());
                match goes_on.and_then(|()| can_meet(host, &capabilities, &parameters)) {
                    Ok(()) => met(daemon),
                    Err(why) => FromPeer::Refused(why),
                }
            }
            ToPeer::Inquire(inquiry) => {
                daemon.calls.note(
                    &daemon.audit,
                    &format!("peer {host}"),
                    "inquire",
                    json!({ "session": inquiry.session }),
                );
                match daemon.standing(host, &inquiry) {
                    Ok(Standing { state, copy }) => FromPeer::Standing { state, copy },
                    Err(error) => FromPeer::Refused(error.to_string()),
                }
            }
            ToPeer::Check(needs) => match check(daemon, host, &needs) {
                Ok(()) => FromPeer::Checked,
                Err(error) => FromPeer::Refused(error.to_string()),
            },
            ToPeer::Probe { bytes } if bytes <= PROBE_MOST => {
                let read = io::copy(&mut connection.take(bytes), &mut io::sink())?;
                if read < bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                FromPeer::Probed
            }
            ToPeer::Probe { .. } => return Err(wrong("the probe is too long")),
            // A repeated call number on this connection is a replay.
            ToPeer::Call { call, .. } if call <= last_call => {
                return Err(wrong(format!("call {call} came again after {last_call}")));
            }
            ToPeer::Call {
                session,
                call,
                order,
            } => {
                last_call = call;
                let is_reserve = matches!(order, Order::Reserve(_));
                let called = called(daemon, host, session, order);
                let (cookie, stream) =
                    called.unwrap_or_else(|error| (Answer::Refused(error.to_string()), None));
                if is_reserve && cookie == Answer::Continue {
                    // The lease belongs to the connection that began the session, and to no other.
                    sessions.push(session);
                }
                if let Answer::Refused(why) = &cookie {
                    log::warn!("session {session} of {host}: refused: {why}");
                    let more = json!({ "session": session, "why": why });
                    note(daemon, host, more);
                }
                FromPeer::Reply {
                    call,
                    status: cookie.status(),
                    cookie,
                    stream,
                }
            }
        };
        if let FromPeer::Refused(why) = &answer {
            log::warn!("{host}: refused: {why}");
            note(daemon, host, json!({ "why": why }));
        }
        write_message(connection, &answer)?;
    }
}

/// Logs a refusal; the peer may continue.
fn note(daemon: &Daemon, host: &str, more: serde_json::Value) {
    let who = format!("peer {host}");
    daemon.calls.note(&daemon.audit, &who, "refused", more);
}

/// Handles one step of a session.
fn called(
    daemon: &Arc<Daemon>,
    host: &str,
    session: SessionId,
    order: Order,
) -> Result<(Answer, Option<StreamOffer>)> {
    if let Order::Reserve(request) = &order {
        check_name(&request.needs.destination_name).map_err(Error::Refused)?;
    }
    Incoming::of(daemon, session, host)?.called(host, order)
}

/// Checks at step 0 whether this host supports what the caller asks for, before it prepares a guest.
fn can_meet(
    host: &str,
    capabilities: &str,
    parameters: &Parameters,
) -> std::result::Result<(), String> {
    let theirs = Capabilities::from_xml(capabilities).map_err(|why| clean(&why, REASON_MOST))?;
    let both = Capabilities::ours().intersection(&theirs);
    both.suffice().map_err(|why| format!("{host} {why}"))?;
    parameters.check()
}

fn met(daemon: &Daemon) -> FromPeer {
    match daemon.host.facts() {
        Ok(facts) => FromPeer::Met {
            capabilities: Capabilities::ours().to_xml(),
            facts,
        },
        Err(error) => FromPeer::Refused(error.to_string()),
    }
}

/// Reserves and releases at once.
fn check(daemon: &Daemon, host: &str, needs: &Needs) -> Result<()> {
    daemon.refuse_if_stopping()?;
    check_name(&needs.destination_name).map_err(Error::Refused)?;
    daemon.admits(host, needs)?;
    let session = SessionId::new(random()?);
    let mut destination = daemon.host.destination()?;
    let reserved = destination.reserve(&session.to_string(), needs);
    destination.discard()?;
    reserved
}
