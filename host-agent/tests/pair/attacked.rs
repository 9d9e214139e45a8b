//! A job that must not be disturbed, and connections of those who try.

use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use unmoved::daemon::Job;
use unmoved::job::{JobOptions, Presence};
use unmoved::pki;
use unmoved::transport::frame::{read_message, write_message};
use unmoved::transport::tls::{Connected, Identity};
use unmoved::transport::{Socket, Watch};

use crate::daemons::Pair;
use crate::{ended, until};

/// Nothing that is to happen takes as long as this.
pub const LONG: Duration = Duration::from_secs(30);

/// A pair with a job that copies memory and does not come to its end by itself.
pub struct Attacked {
    pub pair: Pair,
    pub job: Arc<Job>,
}

impl Attacked {
    pub fn begin() -> Self {
        Self::beside(Pair::start())
    }

    pub fn beside(pair: Pair) -> Self {
        pair.a.add("guest", "u-1");
        pair.a.hold_live(true);
        let options = JobOptions::default();
        let job = pair.left.migrate("test", "guest", "b", options).unwrap();
        until(&job, || pair.b.presence("u-1") == Presence::Partial);
        until(&job, || job.status(0).statistics.wire_bytes > 0);
        Self { pair, job }
    }

    pub fn session(&self) -> &str {
        &self.job.id
    }

    /// The audit log of this host says that they were refused, and why; it may be about to.
    pub fn is_audited(&self, host: &str, who: &str, why: &str) {
        let log = self.pair.folder.path().join(host).join("audit.log");
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(&log).unwrap();
            let mut lines = text
                .lines()
                .map(|line| -> Value { serde_json::from_str(line).unwrap() });
            let is_it = |line: Value| {
                let said = line["more"]["why"].as_str().unwrap_or_default();
                line["what"] == "refused" && line["who"] == who && said.contains(why)
            };
            if lines.any(is_it) {
                return;
            }
            assert!(begun.elapsed() < LONG, "{who}, {why}: not in\n{text}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The job is as it was, and comes to its end.
    pub fn refuse_if_stopping(self) {
        assert!(self.job.result().is_none());
        self.pair.a.hold_live(false);
        ended(&self.job).unwrap();
        assert_eq!(self.pair.a.presence("u-1"), Presence::Absent);
        assert_eq!(self.pair.b.presence("u-1"), Presence::Running);
    }
}

/// A connection to the daemon of `b` and its name there, with TLS as this host, by the certificate in
/// that folder; and the connection below it.
pub fn secure(pair: &Pair, folder: &str, host: &str) -> io::Result<(Connected, TcpStream)> {
    let folder = pair.folder.path().join(folder);
    let identity = Identity::load(
        &pair.folder.path().join("pki").join(pki::AUTHORITY),
        &folder.join(format!("{host}.pem")),
        &folder.join(format!("{host}.key")),
    )?;
    let below = TcpStream::connect(pair.address)?;
    let socket = Socket::new(below.try_clone()?, Arc::new(Watch::default()))?;
    Ok((identity.connect(socket, "b")?, below))
}

/// Says hello as this host, and gives the answer.
pub fn connect(pair: &Pair, host: &str, hello: &Value) -> io::Result<(Connected, Value, String)> {
    let (mut stream, below) = secure(pair, "pki", host)?;
    write_message(&mut stream, hello)?;
    let welcome = read_message(&mut stream, 1 << 20)?;
    Ok((stream, welcome, below.local_addr()?.to_string()))
}

pub fn hello() -> Value {
    json!({ "control": { "version": 1 } })
}

/// A control connection of `a`, and its name in the log.
pub fn controlled(pair: &Pair) -> (Connected, String) {
    let (stream, welcome, who) = connect(pair, "a", &hello()).unwrap();
    assert_eq!(welcome, "welcome");
    (stream, who)
}

pub fn control(pair: &Pair) -> Connected {
    controlled(pair).0
}

pub fn ask(stream: &mut Connected, question: &Value) -> io::Result<Value> {
    write_message(stream, question)?;
    read_message(stream, 1 << 20)
}

/// A session's name as the job has it.
pub fn call(session: &str, number: u64, order: &Value) -> Value {
    json!({ "call": { "session": session, "call": number, "order": order } })
}

/// The other end has closed it.
pub fn is_closed(stream: &mut impl Read) -> bool {
    stream.read(&mut [0; 1]).unwrap_or(0) == 0
}
