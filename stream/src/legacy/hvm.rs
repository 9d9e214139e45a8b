//! The tail of an HVM guest: three frames of the device model, and Xen's blob.

use std::io::{Read, Write};

use crate::error::{Defect, Error};
use crate::legacy::source::Source;
use crate::libxc::{self, HvmParam, RecordType};
use crate::record::MAX_LENGTH;

/// The parameters (`HVM_PARAM_*`) in the order of the tail: ioreq, bufioreq and store frames.
const FRAMES: [u64; 3] = [5, 6, 1];

/// Converts the tail.
pub(super) fn tail<R: Read, W: Write>(
    source: &mut Source<R>,
    out: &mut libxc::Writer<W>,
) -> Result<(), Error> {
    let mut params = Vec::new();
    source.part("magic frames", |source| {
        for index in FRAMES {
            let value = source.u64()?;
            params.push(HvmParam { index, value });
        }
        Ok(())
    })?;
    out.hvm_params(&params)?;
    let length = source.part("HVM context", |source| match source.u32()? {
        length @ 1..=MAX_LENGTH => Ok(length),
        length => Err(Defect::length(length, format!("1 to {MAX_LENGTH}"))),
    })?;
    out.begin_long(RecordType::HVM_CONTEXT, length, &[])?;
    source.part("HVM context", |source| {
        source.copy_padded(length, out.get_mut())
    })
}
