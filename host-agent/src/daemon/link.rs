//! A control connection to a peer's agent, from the source's side, and the data connections beside it.

use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::inquiry::{FEATURE, Inquiry, LIMIT};
use super::wire::{
    Flags, FromPeer, Hello, PROBE_MOST, Parameters, StreamOffer, ToPeer, VERSION, read,
};
use crate::capabilities::{Capabilities, TRANSPORT};
use crate::config::Peer;
use crate::job::{Control, Error, HostFacts, JobOptions, Needs, Result};
use crate::session::{Answer, Order, Other, SessionId, Standing};
use crate::text::{REASON_MOST, clean};
use crate::transport::frame::{MESSAGE_MOST, write_message};
use crate::transport::tls::{Connected, Identity};
use crate::transport::{Socket, Watch};

/// Longest time to establish a TCP connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time for an answer: longer than the destination's toolstack may build.  The blackout has a limit
/// of its own ([`Control::limit_blackout`]).
const ANSWER: Duration = Duration::from_secs(900);
/// Longest time for the acknowledgement of a barrier, before which the toolstack may create devices.
const BARRIER: Duration = Duration::from_secs(660);
/// Sizes of probes that measure the network: small at first, because it may be slow, then larger.  The first
/// ones say little, because the connection and the programs are still warming up.
const PROBES: [u64; 5] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, PROBE_MOST / 4];
/// A probe that takes this long is accurate enough.
const PROBE_TIME: Duration = Duration::from_millis(200);
const PROBE_PIECE: usize = 64 << 10;

/// A control connection.
pub(super) struct Link {
    stream: Connected,
    watch: Arc<Watch>,
    calls: u64,
    /// The peer's address, as configured.
    address: String,
}

impl Link {
    /// Connects to a peer.
    pub(super) fn connect(identity: &Identity, peer: &Peer) -> Result<Self> {
        tcp(&peer.address)
            .and_then(|stream| Self::over(identity, peer, stream))
            .map_err(|error| unreachable(peer, &error))
    }

    fn over(identity: &Identity, peer: &Peer, stream: TcpStream) -> io::Result<Self> {
        let hello = Hello::Control { version: VERSION };
        let watch = Arc::new(Watch::default());
        let mut stream = open(identity, peer, stream, watch.clone(), &hello)?;
        stream.sock.set_silence(ANSWER);
        Ok(Self {
            stream,
            watch,
            calls: 0,
            address: peer.address.clone(),
        })
    }

    /// Asks a peer for the state of a session; waits no longer than [`LIMIT`].
    pub(super) fn inquire(identity: &Identity, peer: &Peer, inquiry: Inquiry) -> Other {
        // Whoever accepts the connection is alive, whatever the answer.
        let Ok(stream) = tcp(&peer.address) else {
            return Other::Silent;
        };
        let mute = |error: Error| Other::Mute(clean(&error.to_string(), REASON_MOST));
        match Self::over(identity, peer, stream) {
            Ok(mut link) => link.ask_standing(inquiry).unwrap_or_else(mute),
            Err(error) => mute(unreachable(peer, &error)),
        }
    }

    fn ask_standing(&mut self, inquiry: Inquiry) -> Result<Other> {
        self.stream.sock.set_deadline_within(LIMIT);
        let (theirs, _) = self.meet(&JobOptions::default())?;
        if !theirs.has(FEATURE) {
            let why = "its version does not support this request".to_owned();
            return Ok(Other::Mute(why));
        }
        match self.ask(&ToPeer::Inquire(inquiry))? {
            FromPeer::Standing { state, copy } => Ok(Other::Said(Standing { state, copy })),
            answer => Err(senseless(&answer)),
        }
    }

    /// While a guest is suspended, a dead peer must be noticed sooner.
    pub(super) fn hurry(&self) {
        self.watch.hurry();
    }

    /// Step 0: asks for the peer's capabilities and host facts.
    pub(super) fn meet(&mut self, options: &JobOptions) -> Result<(Capabilities, HostFacts)> {
        let answer = self.ask(&ToPeer::Meet {
            capabilities: Capabilities::ours().to_xml(),
            parameters: Parameters {
                uri: Some(format!("{TRANSPORT}://{}", self.address)),
                dname: options.destination_name.clone(),
                resource: options.bandwidth,
                flags: Flags::LIVE.bits(),
            },
        })?;
        let FromPeer::Met {
            capabilities,
            facts,
        } = answer
        else {
            return Err(senseless(&answer));
        };
        let theirs = Capabilities::from_xml(&capabilities)
            .map_err(|why| Error::Peer(clean(&why, REASON_MOST)))?;
        Ok((theirs, facts))
    }

    /// Asks whether the destination could reserve this.
    pub(super) fn check(&mut self, needs: &Needs) -> Result<()> {
        match self.ask(&ToPeer::Check(Box::new(needs.clone())))? {
            FromPeer::Checked => Ok(()),
            answer => Err(senseless(&answer)),
        }
    }

    /// Measures the bandwidth of one connection in bytes per second.  An abort ends it at once and makes the
    /// connection unusable.
    pub(super) fn probe(&mut self, control: &Arc<Control>) -> Result<f64> {
        self.stream.sock.set_watch(Watch::of(control.clone()));
        let speed = self.speed(control.bandwidth());
        self.stream.sock.set_watch(self.watch.clone());
        speed
    }

    /// With a bandwidth limit, sends nothing that would take longer than [`PROBE_TIME`].
    fn speed(&mut self, limit: Option<u64>) -> Result<f64> {
        let mut speed = 0.0_f64;
        let most = limit.map_or(f64::MAX, |limit| limit as f64 * PROBE_TIME.as_secs_f64());
        for (number, bytes) in PROBES.into_iter().enumerate() {
            if number > 0 && bytes as f64 > most {
                break;
            }
            let time = self.probe_with(bytes)?;
            // Other traffic may slow down any of them, but nothing makes one faster.
            speed = speed.max(bytes as f64 / time.as_secs_f64().max(1e-6));
            if time >= PROBE_TIME && number > 0 {
                break;
            }
        }
        Ok(speed)
    }

    fn probe_with(&mut self, bytes: u64) -> Result<Duration> {
        write_message(&mut self.stream, &ToPeer::Probe { bytes }).map_err(lost)?;
        let piece = [0xA5; PROBE_PIECE];
        let begun = Instant::now();
        for _ in 0..bytes / PROBE_PIECE as u64 {
            self.stream.write_all(&piece).map_err(lost)?;
        }
        self.stream.flush().map_err(lost)?;
        match self.answer()? {
            FromPeer::Probed => Ok(begun.elapsed()),
            answer => Err(senseless(&answer)),
        }
    }

    /// As [`Link::call`], but `watch` may end the wait; the connection is unusable then.
    pub(super) fn call_unless(
        &mut self,
        watch: Arc<Watch>,
        session: SessionId,
        order: &Order,
    ) -> Result<(Answer, Option<StreamOffer>)> {
        self.stream.sock.set_watch(watch);
        let called = self.call(session, order);
        self.stream.sock.set_watch(self.watch.clone());
        called
    }

    /// Calls the destination's method.
    pub(super) fn call(
        &mut self,
        session: SessionId,
        order: &Order,
    ) -> Result<(Answer, Option<StreamOffer>)> {
        self.calls += 1;
        let answer = self.ask(&ToPeer::Call {
            session,
            call: self.calls,
            order: order.clone(),
        })?;
        match answer {
            FromPeer::Reply {
                call,
                status,
                cookie,
                stream,
            } if call == self.calls && status == cookie.status() => Ok((cookie, stream)),
            answer => Err(senseless(&answer)),
        }
    }

    fn ask(&mut self, question: &ToPeer) -> Result<FromPeer> {
        write_message(&mut self.stream, question).map_err(lost)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<FromPeer> {
        match read(&mut self.stream, MESSAGE_MOST).map_err(lost)? {
            FromPeer::Refused(why) => Err(Error::Refused(format!("the destination: {why}"))),
            answer => Ok(answer),
        }
    }
}

/// Opens one data connection of a session.
pub(super) fn lane(
    identity: &Identity,
    peer: &Peer,
    watch: Arc<Watch>,
    hello: &Hello,
) -> Result<Connected> {
    let mut stream = tcp(&peer.address)
        .and_then(|stream| open(identity, peer, stream, watch, hello))
        .map_err(|error| unreachable(peer, &error))?;
    stream.sock.set_silence(BARRIER);
    Ok(stream)
}

fn open(
    identity: &Identity,
    peer: &Peer,
    stream: TcpStream,
    watch: Arc<Watch>,
    hello: &Hello,
) -> io::Result<Connected> {
    let socket = Socket::new(stream, watch)?;
    let mut stream = identity.connect(socket, &peer.name)?;
    write_message(&mut stream, hello)?;
    match read(&mut stream, MESSAGE_MOST)? {
        FromPeer::Welcome => {
            stream.sock.set_deadline(None);
            Ok(stream)
        }
        FromPeer::Refused(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no welcome")),
    }
}

/// Connects to the first address that answers.
fn tcp(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn unreachable(peer: &Peer, error: &io::Error) -> Error {
    Error::Peer(format!(
        "cannot connect to {} at {}: {error}",
        peer.name, peer.address
    ))
}

fn lost(error: io::Error) -> Error {
    Error::Peer(format!("the connection was lost: {error}"))
}

fn senseless(answer: &FromPeer) -> Error {
    let answer = clean(&format!("{answer:?}"), REASON_MOST);
    Error::Peer(format!("unexpected answer from the destination: {answer}"))
}
