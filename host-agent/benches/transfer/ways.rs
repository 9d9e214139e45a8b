//! The ways to send an image: bare loops and our transport, each plain or through TLS.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use unmoved::job::{Batch, Compression, Control, JobOptions, Sink};
use unmoved::pki;
use unmoved::transport::tls::Identity;
use unmoved::transport::{Duplex, Sender, Socket, Watch, receive};

use crate::image::{BATCH, Figure, Image};

/// Identities of two hosts.
pub struct Tls {
    near: Identity,
    far: Identity,
}

impl Tls {
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        pki::init(folder.path())?;
        let of = |host: &str| -> Result<Identity> {
            pki::issue(folder.path(), &[host.to_owned()])?;
            Ok(Identity::load(
                &folder.path().join(pki::AUTHORITY),
                &folder.path().join(format!("{host}.pem")),
                &folder.path().join(format!("{host}.key")),
            )?)
        };
        Ok(Self {
            near: of("near")?,
            far: of("far")?,
        })
    }
}

fn tcp() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

/// Both ends of a connection, plain or TLS.
fn pair(tls: Option<&Tls>, watch: &Arc<Watch>) -> Result<(Box<dyn Duplex>, Box<dyn Duplex>)> {
    let (near, far) = tcp()?;
    let near = Socket::new(near, watch.clone())?;
    let far = Socket::new(far, watch.clone())?;
    let Some(tls) = tls else {
        return Ok((Box::new(near), Box::new(far)));
    };
    thread::scope(|scope| {
        let accepting = scope.spawn(|| tls.far.accept(far, ["near"]));
        let mut near = tls.near.connect(near, "far")?;
        let accepted = accepting
            .join()
            .map_err(|_| anyhow!("accepting panicked"))?;
        let mut far = accepted?.0;
        near.sock.set_deadline(None);
        far.sock.set_deadline(None);
        let ends: (Box<dyn Duplex>, Box<dyn Duplex>) = (Box::new(near), Box::new(far));
        Ok(ends)
    })
}

/// The limit: one thread writes the image, another reads it, in pieces of the same size.
pub fn bare(image: &Image, tls: Option<&Tls>) -> Result<Figure> {
    let (near, far) = tcp()?;
    let (mut near, mut far): (Box<dyn Duplex>, Box<dyn Duplex>) = match tls {
        None => (Box::new(near), Box::new(far)),
        Some(_) => pair(tls, &Arc::new(Watch::default()))?,
    };
    image.measure(|| {
        thread::scope(|scope| {
            let reading = scope.spawn(move || -> Result<()> {
                let mut buffer = vec![0; BATCH];
                while far.read(&mut buffer)? > 0 {}
                Ok(())
            });
            for batch in image.batches.iter().cycle().take(image.number) {
                near.write_all(&batch.data)?;
            }
            near.flush()?;
            drop(near);
            // The end of a TLS connection without a farewell is an error, and expected here.
            let end = reading.join().map_err(|_| anyhow!("reading panicked"))?;
            if tls.is_none() {
                end?;
            }
            Ok(image.bytes() as u64)
        })
    })
}

/// Counts what it takes.
#[derive(Default)]
struct Count(AtomicU64);

impl Sink for Count {
    fn bytes(&self, _: &[u8]) -> unmoved::job::Result<()> {
        Ok(())
    }

    fn pages(&self, batch: &mut Batch) -> unmoved::job::Result<()> {
        self.0.fetch_add(batch.data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn barrier(&self) -> unmoved::job::Result<()> {
        Ok(())
    }
}

/// Our transport.
pub fn ours(
    image: &Image,
    tls: Option<&Tls>,
    compress: Compression,
    streams: u8,
) -> Result<Figure> {
    let control = Arc::new(Control::new(JobOptions {
        compress,
        parallel: streams,
        timeout_ms: Some(Duration::from_secs(600).as_secs() * 1000),
        ..JobOptions::default()
    }));
    let watch = Watch::of(control.clone());
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..streams {
        let (a, b) = pair(tls, &watch)?;
        near.push(a);
        far.push(b);
    }
    let mut batches = image.batches.clone();
    let count = Count::default();
    let figure = image.measure(|| {
        thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(far, &count, &watch, &|_| ()));
            let sender = Sender::new(near, control.clone())?;
            for number in 0..image.number {
                let index = number % batches.len();
                let mut batch = std::mem::take(&mut batches[index]);
                sender.pages(&mut batch)?;
                // What comes back is a batch that was sent before, content and all.
                batches[index] = batch;
                if batches[index].words.is_empty() {
                    let next = (index + 1) % batches.len();
                    batches[index] = batches[next].clone();
                }
            }
            sender.finish()?;
            let received = receiving
                .join()
                .map_err(|_| anyhow!("receiving panicked"))??;
            Ok(received.wire)
        })
    })?;
    let arrived = count.0.into_inner();
    ensure!(
        arrived == image.bytes() as u64,
        "only {arrived} bytes have arrived"
    );
    Ok(figure)
}
