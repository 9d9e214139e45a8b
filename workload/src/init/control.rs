//! Orders from lines of bytes: the console, and control connections over TCP.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use crate::net::thread::spawn;
use crate::orders::{MAX_LINE, Order};
use crate::report::Reporter;

/// Who carries out orders.
pub trait Obey: Send + Sync + 'static {
    /// Begins with an order; what becomes of it is told to `reporter`.
    fn accept(this: &Arc<Self>, order: Order, reporter: &Reporter);
}

/// Carries out the lines of `source` until its end; answers go to `reporter`.
pub fn listen<W: Obey>(source: impl Read, worker: &Arc<W>, reporter: &Reporter) {
    let mut source = BufReader::new(source);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end must not fill the memory: it is cut, and refused as too long.
        let limit = MAX_LINE as u64 + 2;
        match source.by_ref().take(limit).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        match Order::parse(&String::from_utf8_lossy(&line)) {
            Ok(None) => {}
            Ok(Some(order)) => W::accept(worker, order, reporter),
            Err(error) => reporter.error("order", error),
        }
    }
}

/// Accepts control connections; each gets the answers to its own orders.  The address.
///
/// # Errors
/// If the port is taken.
pub fn serve<W: Obey>(port: u16, worker: &Arc<W>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let address = listener.local_addr()?;
    let worker = Arc::downgrade(worker);
    spawn(move || {
        for connection in listener.incoming().flatten() {
            let Some(worker) = worker.upgrade() else {
                return;
            };
            let Ok(answers) = connection.try_clone() else {
                continue;
            };
            let _ = connection.set_nodelay(true);
            let reporter = Reporter::new(answers);
            let _ = spawn(move || listen(connection, &worker, &reporter));
        }
    })?;
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::{listen, serve};
    use crate::init::worker::Worker;
    use crate::report::{Kept, Reporter, parse_line};
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    #[test]
    fn odd_lines_are_answered_and_survived() {
        let kept = Kept::default();
        let reporter = Reporter::new(kept.clone());
        let worker = Worker::new(reporter.clone());
        let mut input = vec![b'x'; 100_000];
        input.extend_from_slice(b"\n\xff\xfe\n#t1 ping\n#t2 nonsense\n\n#t3");
        listen(input.as_slice(), &worker, &reporter);
        worker.wait_until_idle(Duration::from_secs(20));
        let events = kept.events();
        assert!(events.iter().any(|event| event["ev"] == "error"));
        let done = |tag: &str| {
            events
                .iter()
                .find(|event| event["ev"] == "done" && event["re"] == tag)
                .map(|event| event["ok"].clone())
        };
        assert_eq!(done("t1"), Some(true.into()));
        assert_eq!(done("t2"), Some(false.into()));
    }

    #[test]
    fn a_control_connection_gets_its_own_answers() {
        let kept = Kept::default();
        let worker = Worker::new(Reporter::new(kept.clone()));
        let address = serve(0, &worker).expect("listens");
        let mut connection = TcpStream::connect(("127.0.0.1", address.port())).expect("connects");
        connection.write_all(b"#q facts\n").expect("sent");
        let mut lines = BufReader::new(connection).lines();
        let mut next = || {
            let line = lines.next().expect("a line").expect("read");
            parse_line(&line).expect("a report").expect("whole")
        };
        let facts = next();
        assert_eq!((&facts["ev"], &facts["re"]), (&"facts".into(), &"q".into()));
        assert_eq!(next()["ok"], true);
        assert!(kept.events().is_empty(), "nothing on the console");
    }
}
