//! The xenstore wire protocol and its ring (`xen/include/public/io/xs_wire.h`).
//!
//! A connection is a pair of byte streams.  Each message is a [`Header`] and at most
//! [`PAYLOAD_MAX`] bytes, whose meaning depends on the type; both streams run through one page,
//! laid out as [`ring`] says.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Errno;

/// Most bytes after a header, in either direction (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// Longest absolute path that a client may send (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;
/// Longest path relative to a domain's directory (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;

/// The type of a message (`enum xsd_sockmsg_type`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct MsgType(pub u32);

macro_rules! types {
    ($($name:ident = $value:literal;)*) => {
        impl MsgType {
            $(#[doc = concat!("`XS_", stringify!($name), "`.")] pub const $name: Self = Self($value);)*

            /// Returns the header's name without `XS_`, for logs.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($value => stringify!($name),)*
                    _ => "unknown",
                }
            }
        }
    };
}

types! {
    CONTROL = 0;
    DIRECTORY = 1;
    READ = 2;
    GET_PERMS = 3;
    WATCH = 4;
    UNWATCH = 5;
    TRANSACTION_START = 6;
    TRANSACTION_END = 7;
    INTRODUCE = 8;
    RELEASE = 9;
    GET_DOMAIN_PATH = 10;
    WRITE = 11;
    MKDIR = 12;
    RM = 13;
    SET_PERMS = 14;
    WATCH_EVENT = 15;
    ERROR = 16;
    IS_DOMAIN_INTRODUCED = 17;
    RESUME = 18;
    SET_TARGET = 19;
    RESET_WATCHES = 21;
    DIRECTORY_PART = 22;
}

impl fmt::Debug for MsgType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

/// What every message begins with (`struct xsd_sockmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// A [`MsgType`].
    pub kind: u32,
    /// Chosen by the client, echoed in the reply; 0 in a watch event.
    pub req_id: u32,
    /// The transaction, or 0.
    pub tx_id: u32,
    /// Bytes that follow.
    pub len: u32,
}

const _: () = assert!(size_of::<Header>() == 16);

/// The page that both ends share (`struct xenstore_domain_interface`): byte offsets and values.
pub mod ring {
    /// Bytes in each of the two streams' buffers (`XENSTORE_RING_SIZE`).
    pub const SIZE: u32 = 1024;
    /// Bytes from the client.
    pub const REQ: usize = 0;
    /// Bytes to the client.
    pub const RSP: usize = 1024;
    /// Index of the next byte that the server reads.
    pub const REQ_CONS: usize = 2048;
    /// Index of the next byte that the client writes.
    pub const REQ_PROD: usize = 2052;
    /// Index of the next byte that the client reads.
    pub const RSP_CONS: usize = 2056;
    /// Index of the next byte that the server writes.
    pub const RSP_PROD: usize = 2060;
    /// Bitmap of what the server offers.
    pub const SERVER_FEATURES: usize = 2064;
    /// Whether the client asks for a new connection; only with `FEATURE_RECONNECTION`.
    pub const CONNECTION: usize = 2068;
    /// Why the server has given up the connection.
    pub const ERROR: usize = 2072;

    /// The client may ask for a new connection (`XENSTORE_SERVER_FEATURE_RECONNECTION`).
    pub const FEATURE_RECONNECTION: u32 = 1;
    /// [`ERROR`] is valid (`XENSTORE_SERVER_FEATURE_ERROR`).
    pub const FEATURE_ERROR: u32 = 2;

    /// No error (`XENSTORE_ERROR_NONE`).
    pub const ERROR_NONE: u32 = 0;
    /// The event channel does not work (`XENSTORE_ERROR_COMM`).
    pub const ERROR_COMM: u32 = 1;
    /// An index of the other side is impossible (`XENSTORE_ERROR_RINGIDX`).
    pub const ERROR_RINGIDX: u32 = 2;
    /// A message is longer than allowed (`XENSTORE_ERROR_PROTO`).
    pub const ERROR_PROTO: u32 = 3;
}

/// The errors that have a name on the wire (`xsd_errors`), as sent without the final NUL.
pub const ERRORS: [(Errno, &str); 17] = [
    (Errno::EINVAL, "EINVAL"),
    (Errno::EACCES, "EACCES"),
    (Errno::EEXIST, "EEXIST"),
    (Errno::EISDIR, "EISDIR"),
    (Errno::ENOENT, "ENOENT"),
    (Errno::ENOMEM, "ENOMEM"),
    (Errno::ENOSPC, "ENOSPC"),
    // oxenstored's own word for it; ours is the first.
    (Errno::ENOSPC, "EQUOTA"),
    (Errno::EIO, "EIO"),
    (Errno::ENOTEMPTY, "ENOTEMPTY"),
    (Errno::ENOSYS, "ENOSYS"),
    (Errno::EROFS, "EROFS"),
    (Errno::EBUSY, "EBUSY"),
    (Errno::EAGAIN, "EAGAIN"),
    (Errno::EISCONN, "EISCONN"),
    (Errno::E2BIG, "E2BIG"),
    (Errno::EPERM, "EPERM"),
];

/// Returns the name that carries `error`; one without a name travels as `EINVAL`.
pub fn error_name(error: Errno) -> &'static str {
    ERRORS
        .iter()
        .find(|(known, _)| *known == error)
        .map_or("EINVAL", |(_, name)| name)
}

/// Returns the error that an `ERROR` message's payload names (the final NUL may be missing); one
/// that nobody knows is `EIO`.
pub fn error_from_payload(payload: &[u8]) -> Errno {
    let name = payload.strip_suffix(&[0]).unwrap_or(payload);
    ERRORS
        .iter()
        .find(|(_, known)| known.as_bytes() == name)
        .map_or(Errno::EIO, |(error, _)| *error)
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, IntoBytes};

    use super::{Header, MsgType, error_from_payload, error_name, ring};
    use crate::Errno;

    #[test]
    fn a_header_is_four_little_endian_words() {
        let header = Header {
            kind: MsgType::WRITE.0,
            req_id: 7,
            tx_id: 0x0102_0304,
            len: 4096,
        };
        let bytes = [11, 0, 0, 0, 7, 0, 0, 0, 4, 3, 2, 1, 0, 16, 0, 0];
        assert_eq!(header.as_bytes(), bytes);
        assert_eq!(Header::read_from_bytes(&bytes), Ok(header));
    }

    #[test]
    fn the_ring_page_leaves_no_gap() {
        assert_eq!(ring::REQ + ring::SIZE as usize, ring::RSP);
        assert_eq!(ring::RSP + ring::SIZE as usize, ring::REQ_CONS);
        assert_eq!(ring::ERROR, ring::REQ_CONS + 6 * 4);
    }

    #[test]
    fn errors_travel_by_name() {
        assert_eq!(error_name(Errno::EAGAIN), "EAGAIN");
        assert_eq!(error_name(Errno::ETIME), "EINVAL");
        assert_eq!(error_from_payload(b"ENOENT\0"), Errno::ENOENT);
        assert_eq!(error_from_payload(b"E2BIG"), Errno::E2BIG);
        assert_eq!(error_from_payload(b"ENOENT\0\0"), Errno::EIO);
        assert_eq!(error_from_payload(b""), Errno::EIO);
    }
}
