//! Streams over real connections on the loopback interface: what goes in comes out, and who is refused.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something does not work"
)]

mod record;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use record::{Arrived, Record};
use unmoved::job::{
    Batch, Chunk, Compression, Control, Digests, JobOptions, PAGE_SIZE, Result, Sink, StateDigests,
};
use unmoved::pki;
use unmoved::transport::tls::Identity;
use unmoved::transport::{Duplex, Sender, Socket, Watch, receive};

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (there, listener.accept().unwrap().0)
}

/// A page that is zero now and then, else hardly compressible if `noise`.
fn page(number: u64, noise: bool) -> Vec<u8> {
    if number.is_multiple_of(3) {
        return vec![0; PAGE_SIZE];
    }
    let mut state = number + 1;
    (0..PAGE_SIZE)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            if noise {
                (state >> 56) as u8
            } else {
                number as u8
            }
        })
        .collect()
}

fn zero_pages(arrived: &Arrived) -> usize {
    let Arrived::Pages(_, data) = arrived else {
        return 0;
    };
    let pages = data.chunks(PAGE_SIZE);
    pages
        .filter(|page| page.iter().all(|byte| *byte == 0))
        .count()
}

fn give(sink: &dyn Sink, noise: bool) {
    sink.bytes(b"header").unwrap();
    sink.bytes(b"static data").unwrap();
    let mut batch = Batch::default();
    for round in 0..3 {
        for first in (0..40).step_by(5) {
            batch.clear();
            for number in first..first + 5 {
                let number = number + 100 * round;
                if number % 4 == 1 {
                    batch.words.push(0xF << 60 | number);
                } else {
                    batch.words.push(number);
                    batch.data.extend(page(number, noise));
                }
            }
            sink.pages(&mut batch).unwrap();
        }
        if round != 1 {
            sink.barrier().unwrap();
        }
    }
    sink.bytes(b"tail").unwrap();
    sink.barrier().unwrap();
    // More than go into one frame.
    let chunk = |number: u64| Chunk {
        first: number * Chunk::FRAMES,
        counted: [number, 0, 1 << 63, 7],
        digest: [number as u8; 16],
    };
    let chunks: Vec<Chunk> = (0..20_000).map(chunk).collect();
    sink.digests(Digests::Memory(&chunks)).unwrap();
    let state = StateDigests {
        tsc: [1; 16],
        context: [2; 16],
        params: [3; 16],
    };
    sink.digests(Digests::State(state)).unwrap();
}

#[test]
fn what_goes_in_comes_out_over_any_number_of_connections() {
    for noise in [false, true] {
        let expected = Record::default();
        give(&expected, noise);
        let expected = expected.sorted();
        let zeros = expected.iter().map(zero_pages).sum::<usize>() as u64;
        for parallel in [1, 2, 4] {
            for compress in [Compression::None, Compression::Zstd(1)] {
                let options = JobOptions {
                    compress,
                    ..JobOptions::default()
                };
                let control = Arc::new(Control::new(options));
                let watch = Watch::of(control.clone());
                let (mut near, mut far) = (Vec::new(), Vec::new());
                for _ in 0..parallel {
                    let (a, b) = tcp();
                    let near_end: Box<dyn Duplex> =
                        Box::new(Socket::new(a, watch.clone()).unwrap());
                    let far_end: Box<dyn Duplex> = Box::new(Socket::new(b, watch.clone()).unwrap());
                    near.push(near_end);
                    far.push(far_end);
                }
                let record = Record::default();
                let (sent, received) = thread::scope(|scope| {
                    let receiving = scope.spawn(|| receive(far, &record, &watch, &|_| ()).unwrap());
                    let sender = Sender::new(near, control.clone()).unwrap();
                    give(&sender, noise);
                    (sender.finish().unwrap(), receiving.join().unwrap())
                });
                assert_eq!(received.taken, sent);
                assert_eq!(record.sorted(), expected, "{parallel} {compress} {noise}");
                let statistics = control.statistics();
                let packed = compress != Compression::None && !noise;
                // What is all zero does not travel.
                let page = PAGE_SIZE as u64;
                assert!(statistics.wire_bytes + zeros * page <= sent + 65_536);
                assert!(packed || statistics.wire_bytes + zeros * page >= sent);
                assert_eq!(statistics.compression_pages > 0, packed);
            }
        }
    }
}

#[test]
fn a_connection_that_breaks_ends_both_ends() {
    let control = Arc::new(Control::new(JobOptions::default()));
    let watch = Watch::of(control.clone());
    let (a, b) = tcp();
    let breaker = a.try_clone().unwrap();
    let near: Vec<Box<dyn Duplex>> = vec![Box::new(Socket::new(a, watch.clone()).unwrap())];
    let far: Vec<Box<dyn Duplex>> = vec![Box::new(Socket::new(b, watch.clone()).unwrap())];
    thread::scope(|scope| {
        let watch = &watch;
        let receiving = scope.spawn(move || receive(far, &Record::default(), watch, &|_| ()));
        let sender = Sender::new(near, control).unwrap();
        sender.bytes(b"header").unwrap();
        breaker.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(sender.barrier().is_err());
        assert!(receiving.join().unwrap().is_err());
    });
}

#[test]
fn a_peer_that_breaks_the_rules_is_refused() {
    let frame = |bytes: &[u8]| bytes.to_vec();
    let cases = [
        frame(&[9; 16]),
        // Pages that claim more content than their words have.
        frame(&[
            2, 0, 1, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xF0,
        ]),
        // Four gigabytes of something.
        frame(&[
            1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
        ]),
        // Digests that are not whole, and more of them than a frame may have.
        frame(&[6, 0, 0, 0, 55, 0, 0, 0, 55, 0, 0, 0, 0, 0, 0, 0]),
        frame(&[6, 0, 0, 0, 0x38, 0, 0xe, 0, 0x38, 0, 0xe, 0, 0, 0, 0, 0]),
        frame(&[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for case in cases {
        let watch = Arc::new(Watch::default());
        let (mut near, far) = tcp();
        let far: Vec<Box<dyn Duplex>> = vec![Box::new(Socket::new(far, watch.clone()).unwrap())];
        near.write_all(&case).unwrap();
        assert!(receive(far, &Record::default(), &watch, &|_| ()).is_err());
    }
}

/// Two connections of a stream, each of which has sent one frame of this kind and then says nothing.
fn parted(kinds: [u8; 2], watch: &Arc<Watch>) -> Result<unmoved::transport::Received> {
    let (mut near, mut far) = (Vec::new(), Vec::<Box<dyn Duplex>>::new());
    for kind in kinds {
        let (mut a, b) = tcp();
        let mut header = [0; 16];
        header[0] = kind;
        a.write_all(&header).unwrap();
        near.push(a);
        far.push(Box::new(Socket::new(b, watch.clone()).unwrap()));
    }
    receive(far, &Record::default(), watch, &|_| ())
}

#[test]
fn digests_come_over_the_first_connection_only() {
    // The first waits at a barrier, which the second never comes to.
    let error = parted([3, 6], &Arc::default()).unwrap_err().to_string();
    assert!(error.contains("does not belong here"), "{error}");
}

/// What compares nothing is not to be taken for what has compared.
#[test]
fn a_sink_that_compares_nothing_says_so() {
    struct Deaf;
    impl Sink for Deaf {
        fn bytes(&self, _: &[u8]) -> Result<()> {
            Ok(())
        }

        fn pages(&self, _: &mut Batch) -> Result<()> {
            Ok(())
        }

        fn barrier(&self) -> Result<()> {
            Ok(())
        }
    }
    let watch = Arc::new(Watch::default());
    let (mut near, far) = tcp();
    let far: Vec<Box<dyn Duplex>> = vec![Box::new(Socket::new(far, watch.clone()).unwrap())];
    let mut frame = vec![7, 0, 0, 0, 48, 0, 0, 0, 48, 0, 0, 0, 0, 0, 0, 0];
    frame.extend([0; 48]);
    near.write_all(&frame).unwrap();
    let error = receive(far, &Deaf, &watch, &|_| ()).unwrap_err();
    assert!(error.to_string().contains("cannot verify"), "{error}");
}

#[test]
fn an_end_beside_a_barrier_does_not_keep_the_others_waiting() {
    for kinds in [[3, 5], [5, 3]] {
        let error = parted(kinds, &Arc::default()).unwrap_err().to_string();
        assert!(error.contains("others are at a barrier"), "{error}");
    }
}

#[test]
fn a_stream_that_is_given_up_ends_at_a_barrier_too() {
    let control = Arc::new(Control::new(JobOptions::default()));
    let watch = Watch::of(control.clone());
    thread::scope(|scope| {
        // The other connection says nothing that could be received.
        let waiting = scope.spawn(|| parted([3, 0], &watch));
        control.abort();
        assert!(waiting.join().unwrap().is_err());
    });
}

#[test]
fn an_abort_ends_the_waiting_for_a_peer_that_does_not_read() {
    let control = Arc::new(Control::new(JobOptions::default()));
    let watch = Watch::of(control.clone());
    let (a, _deaf) = tcp();
    let near: Vec<Box<dyn Duplex>> = vec![Box::new(Socket::new(a, watch).unwrap())];
    let sender = Sender::new(near, control.clone()).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| sender.barrier());
        control.abort();
        assert!(waiting.join().unwrap().is_err());
    });
}

fn identity(folder: &Path, authority: &str, host: &str) -> Identity {
    let folder = folder.join(authority);
    Identity::load(
        &folder.join(pki::AUTHORITY),
        &folder.join(format!("{host}.pem")),
        &folder.join(format!("{host}.key")),
    )
    .unwrap()
}

/// Two authorities; hosts `a`, `b` and `c` under each.
fn authorities() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for authority in ["ours", "theirs"] {
        let folder = folder.path().join(authority);
        pki::init(&folder).unwrap();
        for host in ["a", "b", "c"] {
            pki::issue(&folder, &[host.to_owned()]).unwrap();
        }
    }
    folder
}

/// `b` accepts a connection with a limit; gives whom it took it for, or why it did not.
fn accepted_from(near: impl FnOnce(TcpStream) + Send, limit: Duration) -> std::io::Result<String> {
    let folder = authorities();
    let b = identity(folder.path(), "ours", "b");
    let (there, here) = tcp();
    thread::scope(|scope| {
        scope.spawn(move || near(there));
        let mut socket = Socket::new(here, Arc::new(Watch::default())).unwrap();
        socket.set_deadline(Some(Instant::now() + limit));
        let (mut stream, host) = b.accept(socket, ["a", "b"])?;
        stream.write_all(b"welcome")?;
        Ok(host)
    })
}

const LONG: Duration = Duration::from_secs(60);

/// A host of this authority connects to whom it takes for `to`.
fn connecting(authority: &'static str, host: &'static str, to: &'static str) -> impl Fn(TcpStream) {
    move |stream| {
        let folder = authorities();
        let identity = identity(folder.path(), authority, host);
        let socket = Socket::new(stream, Arc::new(Watch::default())).unwrap();
        if let Ok(mut stream) = identity.connect(socket, to) {
            let _ = stream.read(&mut [0; 7]);
        }
    }
}

#[test]
fn strangers_are_refused() {
    // An authority that is made anew is another one, whatever its name: so is each folder's.
    let error = accepted_from(connecting("ours", "a", "b"), LONG).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    let plain = |mut stream: TcpStream| {
        let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let _ = stream.read(&mut [0; 64]);
    };
    let error = accepted_from(plain, LONG).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
}

#[test]
fn a_peer_that_says_nothing_is_not_waited_for() {
    let silent = |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 64]);
    };
    let error = accepted_from(silent, Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn only_hosts_that_are_peers_here_are_let_in() {
    let folder = authorities();
    let connect = |host: &str, to: &str| {
        let b = identity(folder.path(), "ours", "b");
        let other = identity(folder.path(), "ours", host);
        let (there, here) = tcp();
        thread::scope(|scope| {
            scope.spawn(move || {
                let socket = Socket::new(there, Arc::new(Watch::default())).unwrap();
                if let Ok(mut stream) = other.connect(socket, to) {
                    let _ = stream.read(&mut [0; 7]);
                }
            });
            let socket = Socket::new(here, Arc::new(Watch::default())).unwrap();
            b.accept(socket, ["a"]).map(|(_, host)| host)
        })
    };
    assert_eq!(connect("a", "b").unwrap(), "a");
    let error = connect("c", "b").unwrap_err();
    assert!(
        error.to_string().contains("belong to a configured peer"),
        "{error}"
    );
    // Who wanted to reach somebody else goes away.
    assert!(connect("a", "c").is_err());
}
