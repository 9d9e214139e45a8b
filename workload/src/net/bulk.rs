//! Throughput and round trips: a server that swallows, pours or echoes, and the measuring client.
//!
//! A connection begins with one byte: `S` and the server swallows until the end of the stream and
//! answers the number of bytes (8 bytes, little-endian); `R` and it pours until the other hangs up; `E`
//! and it sends every byte back.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::thread::spawn;

const CHUNK: usize = 64 << 10;
/// A connection on which nothing moves for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the server; its address.
///
/// # Errors
/// If the address can not be bound.
pub fn serve(address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    spawn(move || {
        for connection in listener.incoming().flatten() {
            // A client that goes away in the middle is none of the server's business.
            let _ = spawn(move || drop(answer(connection)));
        }
    })?;
    Ok(address)
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut wish = [0];
    connection.read_exact(&mut wish)?;
    let mut buffer = vec![0x55; CHUNK];
    match wish[0] {
        b'S' => {
            let mut total = 0_u64;
            loop {
                match connection.read(&mut buffer)? {
                    0 => break,
                    length => total += length as u64,
                }
            }
            connection.write_all(&total.to_le_bytes())
        }
        b'E' => {
            connection.set_nodelay(true)?;
            loop {
                connection.read_exact(&mut wish)?;
                connection.write_all(&wish)?;
            }
        }
        b'R' => loop {
            connection.write_all(&buffer)?;
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn connect(server: SocketAddr, wish: u8) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect_timeout(&server, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.write_all(&[wish])?;
    Ok(connection)
}

fn mib_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64().max(1e-6)
}

/// Sends for `time`; MiB/s up to the server's confirmation of the last byte.
///
/// # Errors
/// If the connection fails or the server did not get every byte.
pub fn measure_send(server: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut connection = connect(server, b'S')?;
    let buffer = vec![0xaa; CHUNK];
    let start = Instant::now();
    let mut total = 0_u64;
    while start.elapsed() < time {
        connection.write_all(&buffer)?;
        total += buffer.len() as u64;
    }
    connection.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    connection.read_exact(&mut count)?;
    if u64::from_le_bytes(count) != total {
        return Err(io::Error::other(
            "the server received another number of bytes",
        ));
    }
    Ok(mib_per_second(total, start.elapsed()))
}

/// Receives for `time`; MiB/s.
///
/// # Errors
/// If the connection fails or a byte is wrong.
pub fn measure_receive(server: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut connection = connect(server, b'R')?;
    let mut buffer = vec![0; CHUNK];
    let start = Instant::now();
    let mut total = 0_u64;
    while start.elapsed() < time {
        let length = connection.read(&mut buffer)?;
        if length == 0 || buffer[..length].iter().any(|&byte| byte != 0x55) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        total += length as u64;
    }
    Ok(mib_per_second(total, start.elapsed()))
}

/// Sends one byte to and fro for `time`; microseconds of a round trip.
///
/// # Errors
/// If the connection fails.
pub fn measure_round_trip(server: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut connection = connect(server, b'E')?;
    connection.set_nodelay(true)?;
    let mut byte = [0x33];
    let start = Instant::now();
    let mut trips = 0_u32;
    while trips == 0 || start.elapsed() < time {
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)?;
        trips += 1;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(trips))
}

#[cfg(test)]
mod tests {
    use super::{measure_receive, measure_round_trip, measure_send, serve};
    use std::time::Duration;

    #[test]
    fn both_directions_are_measured() {
        let server = serve(([127, 0, 0, 1], 0).into()).expect("binds");
        let time = Duration::from_millis(50);
        assert!(measure_send(server, time).expect("sends") > 0.1);
        assert!(measure_receive(server, time).expect("receives") > 0.1);
        assert!(measure_round_trip(server, time).expect("echoes") > 0.1);
    }
}
