//! The guest's services and the peer against each other over the loopback, with a meddler between.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::services::Services;
use super::tcp_peer::{Options, TcpRun};
use super::thread::spawn;
use super::udp_peer::UdpRun;

fn local(address: SocketAddr) -> SocketAddr {
    ([127, 0, 0, 1], address.port()).into()
}

fn options(to: SocketAddr) -> Options {
    Options {
        to,
        connections: 3,
        message: 4096,
        interval: Duration::from_millis(1),
        window: 64 << 10,
        patience: Duration::from_secs(5),
        connect: Duration::from_secs(5),
    }
}

fn wait_for(what: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < limit, "nothing happened for a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_undisturbed_run_is_clean() {
    let services = Services::start_on([0; 3]).expect("starts");
    let run = TcpRun::start(&options(local(services.echo))).expect("starts");
    wait_for(|| run.figures()["returned_bytes"].as_u64() > Some(500_000));
    let end = run.finish();
    assert_eq!(end["ok"], true, "{end}");
    assert_eq!(end["sent_bytes"], end["returned_bytes"], "{end}");
    assert_eq!(services.figures()["tcp"]["accepted"], 3);
    assert_eq!(services.figures()["tcp"]["broken"], 0);

    let run = UdpRun::start(local(services.udp), Duration::from_millis(1)).expect("starts");
    wait_for(|| run.figures()["answered"].as_u64() > Some(100));
    let end = run.finish();
    assert_eq!(
        (&end["ok"], &end["corrupt"]),
        (&true.into(), &0.into()),
        "{end}"
    );
    assert_eq!(end["lost"], 0, "{end}");
    assert_eq!(services.figures()["udp"]["missing"], 0);
}

/// Passes bytes on to an echo server; what comes back goes through `meddle`, which may answer
/// `None` to break the connection.
fn meddler(to: SocketAddr, meddle: fn(u64, &mut [u8]) -> Option<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("address");
    let serve = move |mut front: TcpStream| -> std::io::Result<()> {
        let mut back = TcpStream::connect(to)?;
        let (mut from, mut forth) = (front.try_clone()?, back.try_clone()?);
        spawn(move || {
            let _ = std::io::copy(&mut from, &mut forth);
            let _ = forth.shutdown(std::net::Shutdown::Write);
        })?;
        let mut buffer = [0; 1000];
        let mut passed = 0;
        loop {
            let length = back.read(&mut buffer)?;
            if length == 0 || meddle(passed, &mut buffer[..length]).is_none() {
                return front.shutdown(std::net::Shutdown::Both);
            }
            front.write_all(&buffer[..length])?;
            passed += length as u64;
        }
    };
    spawn(move || {
        for front in listener.incoming().flatten() {
            let _ = spawn(move || drop(serve(front)));
        }
    })
    .expect("starts");
    address
}

#[test]
fn a_changed_byte_is_found() {
    let services = Services::start_on([0; 3]).expect("starts");
    let to = meddler(local(services.echo), |passed, bytes| {
        if passed > 20_000 {
            bytes[0] ^= 1;
        }
        Some(())
    });
    let run = TcpRun::start(&options(to)).expect("starts");
    wait_for(|| run.figures()["corrupt"] == 3);
    let end = run.finish();
    assert_eq!(
        (&end["ok"], &end["breaks"]),
        (&false.into(), &0.into()),
        "{end}"
    );
}

#[test]
fn a_broken_connection_is_found() {
    let services = Services::start_on([0; 3]).expect("starts");
    let to = meddler(local(services.echo), |passed, _| {
        (passed < 20_000).then_some(())
    });
    let run = TcpRun::start(&options(to)).expect("starts");
    wait_for(|| run.figures()["breaks"] == 3);
    let end = run.finish();
    assert_eq!(
        (&end["ok"], &end["alive"]),
        (&false.into(), &0.into()),
        "{end}"
    );
}

#[test]
fn a_guest_that_is_not_there_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let gone = listener.local_addr().expect("address");
    drop(listener);
    let options = Options {
        connect: Duration::from_millis(100),
        ..options(gone)
    };
    let run = TcpRun::start(&options).expect("starts");
    wait_for(|| run.figures()["failed_connects"] == 3);
    assert_eq!(run.finish()["ok"], false);
}
