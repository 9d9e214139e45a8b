//! Xen's error numbers (`xen/include/public/errno.h`), which are Linux's.

use core::fmt;

/// An error number as a hypercall reports it: positive here, negated in `rax`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Returns the name that the public header gives this number, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1;
    /// No such file, node or vCPU.
    ENOENT = 2;
    /// No such domain.
    ESRCH = 3;
    /// Input or output error.
    EIO = 5;
    /// No such device or address.
    ENXIO = 6;
    /// Argument list too long.
    E2BIG = 7;
    /// Not an executable that can be started.
    ENOEXEC = 8;
    /// Bad handle.
    EBADF = 9;
    /// Try again.
    EAGAIN = 11;
    /// Out of memory.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// Bad guest address.
    EFAULT = 14;
    /// Already in use.
    EBUSY = 16;
    /// Exists already.
    EEXIST = 17;
    /// No such device.
    ENODEV = 19;
    /// Is a directory.
    EISDIR = 21;
    /// Invalid argument.
    EINVAL = 22;
    /// No space left.
    ENOSPC = 28;
    /// Read-only.
    EROFS = 30;
    /// Result out of range.
    ERANGE = 34;
    /// Hypercall or sub-operation not implemented.
    ENOSYS = 38;
    /// Directory not empty.
    ENOTEMPTY = 39;
    /// No data available.
    ENODATA = 61;
    /// The deadline has passed.
    ETIME = 62;
    /// Value too large.
    EOVERFLOW = 75;
    /// Interrupted: to be begun again.  Never seen by a guest.
    ERESTART = 85;
    /// Operation not supported.
    EOPNOTSUPP = 95;
    /// Already connected.
    EISCONN = 106;
    /// Not connected.
    ENOTCONN = 107;
    /// Timed out.
    ETIMEDOUT = 110;
}

impl Errno {
    /// Returns the value that a hypercall leaves in `rax` for this error.
    #[expect(
        clippy::cast_sign_loss,
        reason = "rax holds the two's complement of the number"
    )]
    pub const fn to_rax(self) -> u64 {
        (-(self.0 as i64)) as u64
    }

    /// Splits a hypercall's `rax` into result and error, as every caller of the ABI must.
    #[expect(clippy::cast_possible_wrap, reason = "rax is signed by the ABI")]
    pub const fn from_rax(rax: u64) -> Result<u64, Self> {
        let signed = rax as i64;
        if signed < 0 && signed > -4096 {
            Err(Self(-signed as i32))
        } else {
            Ok(rax)
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn rax_round_trips() {
        assert_eq!(Errno::from_rax(Errno::EINVAL.to_rax()), Err(Errno::EINVAL));
        assert_eq!(Errno::from_rax(7), Ok(7));
        assert_eq!(Errno::EINVAL.to_rax(), 0xffff_ffff_ffff_ffea);
    }
}
