//! The wire between the lab and its agent in dom0: frames over one virtio-serial port, or a serial line.
//!
//! A frame is a 12-byte header (`magic | kind`, task number, payload length; little endian) and a
//! payload.  The lab numbers its tasks; every frame about a task carries that number, so any number
//! of commands run at once.  Files do not travel here: they go through a *window*, a raw disk
//! whose other side is a file of the lab's (see [`WINDOW_BYTES`]), because a serial port takes at
//! most 4 KiB at a time towards the guest.
//!
//! `src/main.rs` is the agent, `unmoved_lab::channel` the other end.

use std::io::{self, Read, Write};

/// Name of the virtio-serial port that carries the frames.
pub const PORT_NAME: &str = "unmoved.agent";
/// The line that carries them on a machine without such a port.
pub const SERIAL_LINE: &str = "/dev/ttyS1";
/// Serial number of the virtio disk that is the window for files, or model name of the IDE disk.
pub const WINDOW_SERIAL: &str = "window";
/// Size of that disk: the longest piece of a file that one transfer carries.
pub const WINDOW_BYTES: u64 = 64 << 20;
/// Longest payload either side sends or accepts.
pub const MAX_PAYLOAD: usize = 64 << 10;

const MAGIC: u32 = 0x4d56_5500;
const HEADER: usize = 12;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Both ways: "are you there"; the payload comes back unchanged.
    Hello = 1,
    /// To dom0: start a command; the payload is its argument vector, each ended by a NUL.
    Start = 2,
    /// To dom0: bytes for the command's standard input.
    Stdin = 3,
    /// To dom0: end of the command's standard input.
    StdinEnd = 4,
    /// To dom0: send the command's process group a signal (payload: one byte).
    Signal = 5,
    /// From dom0: the command's standard output.
    Stdout = 6,
    /// From dom0: the command's standard error.
    Stderr = 7,
    /// From dom0: the command ended (payload: `i32`; 128 + n for signal n).
    Exit = 8,
    /// To dom0: write the window's first bytes to a file ([`FileRequest`]).
    Store = 9,
    /// To dom0: put a piece of a file into the window ([`FileRequest`]).
    Load = 10,
    /// From dom0: a `Store` or `Load` is done (payload: `u64` bytes moved, `u64` size of the file, `u32` mode).
    Done = 11,
    /// From dom0: the task could not be started or done (payload: text).
    Failed = 12,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 12] = [
            Kind::Hello,
            Kind::Start,
            Kind::Stdin,
            Kind::StdinEnd,
            Kind::Signal,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Exit,
            Kind::Store,
            Kind::Load,
            Kind::Done,
            Kind::Failed,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// The task that it is about, numbered by the lab.
    pub task: u32,
    /// Its content, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Write the frame in one call, so that frames of several threads never mix.
    ///
    /// # Errors
    /// When the port does, or when the payload is too long.
    pub fn write_to(&self, port: &mut impl Write) -> io::Result<()> {
        let length = u32::try_from(self.payload.len())
            .ok()
            .filter(|_| self.payload.len() <= MAX_PAYLOAD)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "payload too long"))?;
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend_from_slice(&(MAGIC | u32::from(self.kind as u8)).to_le_bytes());
        bytes.extend_from_slice(&self.task.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        port.write_all(&bytes)?;
        port.flush()
    }

    /// Read the next frame.
    ///
    /// # Errors
    /// When the port does, at its end, or when what comes is no frame.
    pub fn read_from(port: &mut impl Read) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut word = [0; 4];
        port.read_exact(&mut word)?;
        let tag = u32::from_le_bytes(word);
        port.read_exact(&mut word)?;
        let task = u32::from_le_bytes(word);
        port.read_exact(&mut word)?;
        let length = usize::try_from(u32::from_le_bytes(word)).map_err(|_| invalid("length"))?;
        if tag & !0xff != MAGIC {
            return Err(invalid("not a frame"));
        }
        let kind = Kind::from_byte((tag & 0xff) as u8).ok_or_else(|| invalid("unknown kind"))?;
        if length > MAX_PAYLOAD {
            return Err(invalid("payload too long"));
        }
        let mut payload = vec![0; length];
        port.read_exact(&mut payload)?;
        Ok(Self {
            kind,
            task,
            payload,
        })
    }
}

/// Which piece of which file a [`Kind::Store`] or [`Kind::Load`] moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRequest {
    /// Where in the file the piece begins, in bytes; a `Store` at 0 creates or truncates the file.
    pub offset: u64,
    /// How many bytes (a `Load` moves fewer at the end of the file).
    pub length: u64,
    /// Permission bits of a stored file.
    pub mode: u32,
    /// The file, absolute.
    pub path: String,
}

impl FileRequest {
    /// As a frame's payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.extend_from_slice(&self.mode.to_le_bytes());
        bytes.extend_from_slice(self.path.as_bytes());
        bytes
    }

    /// From a frame's payload; `None` if it is too short, no UTF-8, or larger than the window.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let request = Self {
            offset: u64::from_le_bytes(bytes.get(0..8)?.try_into().ok()?),
            length: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
            mode: u32::from_le_bytes(bytes.get(16..20)?.try_into().ok()?),
            path: String::from_utf8(bytes.get(20..)?.to_vec()).ok()?,
        };
        (request.length <= WINDOW_BYTES).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::{FileRequest, Frame, Kind, MAX_PAYLOAD};

    #[test]
    fn a_frame_survives_the_wire() {
        let frame = Frame {
            kind: Kind::Exit,
            task: 7,
            payload: vec![1, 0, 0, 0],
        };
        let mut wire = Vec::new();
        frame.write_to(&mut wire).unwrap();
        assert_eq!(Frame::read_from(&mut wire.as_slice()).unwrap(), frame);
    }

    #[test]
    fn noise_is_refused() {
        assert!(Frame::read_from(&mut [0u8; 64].as_slice()).is_err());
        let long = Frame {
            kind: Kind::Stdout,
            task: 1,
            payload: vec![0; MAX_PAYLOAD + 1],
        };
        assert!(long.write_to(&mut Vec::new()).is_err());
    }

    #[test]
    fn a_file_request_survives_the_wire() {
        let request = FileRequest {
            offset: 1 << 40,
            length: 4096,
            mode: 0o755,
            path: "/root/shim".to_owned(),
        };
        assert_eq!(FileRequest::decode(&request.encode()), Some(request));
        assert_eq!(FileRequest::decode(&[0; 19]), None);
    }
}
