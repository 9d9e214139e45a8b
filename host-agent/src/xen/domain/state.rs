//! A domain's state without memory: TSC, vCPUs and devices, and whether it runs.

use xen_abi::hypercall;
use zerocopy::{FromZeros, IntoBytes};

use super::{Domain, PAGE};
use crate::job::{Error, Result};
use crate::xen::abi::{self, HvmParam, TscInfo, domctl};
use crate::xen::sys::{Argument, Buffer};

/// Largest plausible state of vCPUs, devices and CPUID.
const MOST_STATE: usize = 16 << 20;

impl Domain<'_> {
    /// Gets the domain's TSC settings.
    pub(crate) fn tsc_info(&self) -> Result<TscInfo> {
        let mut info = TscInfo::new_zeroed();
        self.domctl(domctl::GETTSCINFO, &mut info, &mut [])
            .map_err(|error| self.failed("get the clock of", &error))?;
        Ok(info)
    }

    /// Sets the domain's limit in pages; it keeps what it has beyond that.
    pub(crate) fn set_most_pages(&self, pages: u64) -> Result<()> {
        let mut most = abi::MaxMem {
            max_memkb: pages.saturating_mul(PAGE >> 10),
        };
        self.domctl(domctl::MAX_MEM, &mut most, &mut [])
            .map(drop)
            .map_err(|error| self.failed("set the memory limit of", &error))
    }

    /// Sets the domain's TSC settings.
    pub(crate) fn set_tsc_info(&self, mut info: TscInfo) -> Result<()> {
        self.domctl(domctl::SETTSCINFO, &mut info, &mut [])
            .map(drop)
            .map_err(|error| self.failed("set the clock of", &error))
    }

    /// Gets the state of its vCPUs and emulated devices, as Xen stores it.
    pub(crate) fn hvm_context(&self) -> Result<Vec<u8>> {
        let failed = |error| self.failed("get the state of", &error);
        let mut body = abi::HvmContext::new_zeroed();
        self.domctl(domctl::GETHVMCONTEXT, &mut body, &mut [])
            .map_err(failed)?;
        let size = self.bounded(body.size as usize)?;
        let mut buffer = self.xen.buffer(size).map_err(failed)?;
        let nested = &mut [(std::mem::offset_of!(abi::HvmContext, buffer), &mut buffer)];
        self.domctl(domctl::GETHVMCONTEXT, &mut body, nested)
            .map_err(failed)?;
        let mut context = vec![0; size.min(body.size as usize)];
        buffer.read(0, &mut context);
        Ok(context)
    }

    /// Sets the state of its vCPUs and emulated devices.
    pub(crate) fn set_hvm_context(&self, context: &[u8]) -> Result<()> {
        let failed = |error| self.failed("set the state of", &error);
        let mut buffer = self
            .xen
            .buffer(self.bounded(context.len())?)
            .map_err(failed)?;
        buffer.write(0, context);
        let mut body = abi::HvmContext {
            size: u32::try_from(context.len()).unwrap_or(0),
            ..abi::HvmContext::new_zeroed()
        };
        let nested = &mut [(std::mem::offset_of!(abi::HvmContext, buffer), &mut buffer)];
        self.domctl(domctl::SETHVMCONTEXT, &mut body, nested)
            .map(drop)
            .map_err(failed)
    }

    /// Gets its CPUID leaves and MSRs, in the stream's form.
    pub(crate) fn cpu_policy(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let failed = |error| self.failed("get the CPU policy of", &error);
        let mut body = abi::CpuPolicy::new_zeroed();
        // Without buffers, Xen returns the largest size.
        self.domctl(domctl::GET_CPU_POLICY, &mut body, &mut [])
            .map_err(failed)?;
        let most_leaves = self.bounded(body.nr_leaves as usize * abi::CPUID_LEAF)?;
        let most_msrs = self.bounded(body.nr_msrs as usize * abi::MSR_ENTRY)?;
        let mut leaves = self.xen.buffer(most_leaves).map_err(failed)?;
        let mut msrs = self.xen.buffer(most_msrs).map_err(failed)?;
        let nested = &mut [
            (std::mem::offset_of!(abi::CpuPolicy, leaves), &mut leaves),
            (std::mem::offset_of!(abi::CpuPolicy, msrs), &mut msrs),
        ];
        self.domctl(domctl::GET_CPU_POLICY, &mut body, nested)
            .map_err(failed)?;
        let take = |buffer: &Buffer, size: usize, most: usize| {
            let mut bytes = vec![0; size.min(most)];
            buffer.read(0, &mut bytes);
            bytes
        };
        Ok((
            take(
                &leaves,
                body.nr_leaves as usize * abi::CPUID_LEAF,
                most_leaves,
            ),
            take(&msrs, body.nr_msrs as usize * abi::MSR_ENTRY, most_msrs),
        ))
    }

    /// Gets a parameter (one of [`abi::param`]).
    pub(crate) fn param(&self, index: u32) -> Result<u64> {
        let mut param = HvmParam {
            domid: self.domid,
            pad: 0,
            index,
            value: 0,
        };
        let mut buffer = self.xen.shared.arguments.lock();
        buffer.write(0, param.as_bytes());
        let arguments = [
            Argument::Value(abi::HVMOP_GET_PARAM),
            Argument::Structure(&mut buffer, &mut []),
        ];
        self.xen
            .shared
            .privcmd
            .call(hypercall::HVM_OP, arguments)
            .map_err(|error| self.failed(&format!("get parameter {index} of"), &error))?;
        buffer.read(0, param.as_mut_bytes());
        Ok(param.value)
    }

    /// Sets a parameter.
    pub(crate) fn set_param(&self, index: u32, value: u64) -> Result<()> {
        let param = HvmParam {
            domid: self.domid,
            pad: 0,
            index,
            value,
        };
        let mut buffer = self.xen.shared.arguments.lock();
        buffer.write(0, param.as_bytes());
        let arguments = [
            Argument::Value(abi::HVMOP_SET_PARAM),
            Argument::Structure(&mut buffer, &mut []),
        ];
        self.xen
            .shared
            .privcmd
            .call(hypercall::HVM_OP, arguments)
            .map(drop)
            .map_err(|error| self.failed(&format!("set parameter {index} of"), &error))
    }

    /// Reverts one pause of the toolstack.
    pub(crate) fn unpause(&self) -> Result<()> {
        self.simple(domctl::UNPAUSEDOMAIN, "unpause")
    }

    /// Resumes a suspended domain, and tells it that nothing has changed: its hypercall returns 1.
    pub(crate) fn resume(&self) -> Result<()> {
        if self.param(abi::param::CALLBACK_IRQ)? != 0 {
            self.return_one_from_suspend()?;
        }
        self.simple(domctl::RESUMEDOMAIN, "resume")
    }

    fn return_one_from_suspend(&self) -> Result<()> {
        let failed = |error| self.failed("change the registers of", &error);
        let mut context = self.xen.buffer(abi::VCPU_GUEST_CONTEXT).map_err(failed)?;
        let mut body = abi::VcpuContext::new_zeroed();
        let offset = std::mem::offset_of!(abi::VcpuContext, ctxt);
        let nested = &mut [(offset, &mut context)];
        self.domctl(domctl::GETVCPUCONTEXT, &mut body, nested)
            .map_err(failed)?;
        context.write(abi::VCPU_GUEST_CONTEXT_RAX, &1_u64.to_ne_bytes());
        let mut body = abi::VcpuContext::new_zeroed();
        let nested = &mut [(offset, &mut context)];
        self.domctl(domctl::SETVCPUCONTEXT, &mut body, nested)
            .map(drop)
            .map_err(failed)
    }

    fn bounded(&self, size: usize) -> Result<usize> {
        if size > MOST_STATE {
            let what = format!("{size} bytes of state of domain {}", self.domid);
            return Err(Error::Xen(format!("{what} are more than can be")));
        }
        Ok(size)
    }
}
