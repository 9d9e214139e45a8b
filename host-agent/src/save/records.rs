//! The records of a domain's stream that are not memory, from what Xen says of the domain.

use unmoved_stream::libxc::{DomainHeader, DomainType, HvmParam, ImageHeader, TscInfo, Writer};

use crate::job::{Error, Result};
use crate::xen::abi::param;
use crate::xen::domain::{Domain, Xen};

/// Writes them; the bytes are taken out after each step.
#[derive(Debug)]
pub(crate) struct Records(Writer<Vec<u8>>);

impl Records {
    /// Headers and static data of a PVH domain.
    pub(crate) fn begin(xen: &Xen, domain: Domain<'_>) -> Result<Self> {
        let (xen_major, xen_minor) = xen.release();
        let header = DomainHeader {
            kind: DomainType::Hvm,
            xen_major,
            xen_minor,
        };
        let (leaves, msrs) = domain.cpu_policy()?;
        let mut writer =
            Writer::new(Vec::new(), ImageHeader { version: 3 }, header).map_err(failed)?;
        // Empty records are left out, as Xen's own writer does.
        if !leaves.is_empty() {
            writer.cpuid_policy(&leaves).map_err(failed)?;
        }
        if !msrs.is_empty() {
            writer.msr_policy(&msrs).map_err(failed)?;
        }
        writer.static_data_end().map_err(failed)?;
        Ok(Self(writer))
    }

    /// Clock, vCPUs and parameters, as they are now.
    pub(crate) fn state(&mut self, domain: Domain<'_>) -> Result<()> {
        let tsc = domain.tsc_info()?;
        let tsc = TscInfo {
            mode: tsc.tsc_mode,
            khz: tsc.gtsc_khz,
            elapsed_ns: tsc.elapsed_nsec,
            incarnation: tsc.incarnation,
        };
        let context = domain.hvm_context()?;
        let mut params = Vec::new();
        for index in param::IN_STREAM {
            let value = domain.param(index)?;
            if value != 0 {
                let index = u64::from(index);
                params.push(HvmParam { index, value });
            }
        }
        let writer = &mut self.0;
        writer.tsc_info(tsc).map_err(failed)?;
        writer.hvm_context(&context).map_err(failed)?;
        if params.is_empty() {
            return Ok(());
        }
        writer.hvm_params(&params).map_err(failed)
    }

    /// The last record.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.0.end().map_err(failed)
    }

    /// What has been written since it was asked last.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.0.get_mut())
    }
}

fn failed(error: unmoved_stream::Error) -> Error {
    Error::Xen(format!("cannot encode the domain's state: {error}"))
}
