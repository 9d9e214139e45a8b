//! Which libxc record may come when, and which must have come.
//!
//! The specification leaves the order of independent records open and fixes only: static data, then
//! STATIC_DATA_END (version 3), then everything else; and for PV guests X86_PV_INFO, P2M frames, pages,
//! vCPUs.  Where writers and specification disagree (HVM_CONTEXT comes before HVM_PARAMS in real
//! streams) both are accepted.  What a receiver cannot do without is mandatory: see `docs/stream.md`.

use crate::error::Defect;
use crate::libxc::{Content, DomainHeader, DomainType, ImageHeader, PageEntry, PvInfo, VcpuPart};

/// What has come since the start, or since the last checkpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    anything: bool,
    pages: bool,
    vcpus: bool,
    vcpu0: bool,
    context: bool,
}

/// The state of a stream between two records.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    version: u32,
    kind: DomainType,
    static_data_end: bool,
    guest: Option<PvInfo>,
    last_pfn: Option<u32>,
    checkpoints: u64,
    since: Since,
    ended: bool,
}

impl Order {
    pub(crate) fn new(image: ImageHeader, domain: DomainHeader) -> Self {
        Self {
            version: image.version,
            kind: domain.kind,
            static_data_end: false,
            guest: None,
            last_pfn: None,
            checkpoints: 0,
            since: Since::default(),
            ended: false,
        }
    }

    /// Width of a PV guest, once it is known.
    pub(crate) fn guest(&self) -> Option<PvInfo> {
        self.guest
    }

    /// Checks that a frame is within the memory that the stream has described.
    pub(crate) fn accept_entry(&self, index: u64, entry: PageEntry) -> Result<(), Defect> {
        match self.last_pfn {
            Some(last) if entry.pfn() > last.into() => Err(Defect::BeyondEnd {
                pfn: entry.pfn(),
                index,
                last: last.into(),
            }),
            _ => Ok(()),
        }
    }

    /// Takes note of the next record, or says why it may not come now.
    pub(crate) fn accept(&mut self, content: &Content) -> Result<(), Defect> {
        if self.ended {
            return Err(Defect::Order("END was the last record"));
        }
        match content.domain() {
            Some(DomainType::Pv) if self.kind == DomainType::Hvm => {
                return Err(Defect::Order("this is the stream of an HVM guest"));
            }
            Some(DomainType::Hvm) if self.kind == DomainType::Pv => {
                return Err(Defect::Order("this is the stream of a PV guest"));
            }
            _ => {}
        }
        match content {
            Content::PvInfo(_) | Content::CpuidPolicy { .. } | Content::MsrPolicy { .. } => {
                self.accept_static(content)?;
            }
            Content::StaticDataEnd => {
                self.needs_version_3()?;
                if self.static_data_end {
                    return Err(Defect::Order("there has been one"));
                }
                if self.kind == DomainType::Pv && self.guest.is_none() {
                    return Err(Defect::Missing("X86_PV_INFO"));
                }
                self.static_data_end = true;
            }
            // Neither says anything that another record depends on.
            Content::TscInfo(_) | Content::Optional => {}
            Content::End => {
                self.accept_end()?;
                self.ended = true;
                return Ok(());
            }
            Content::Checkpoint => {
                self.accept_end()?;
                self.checkpoints += 1;
                self.since = Since::default();
                return Ok(());
            }
            _ => self.accept_dynamic(content)?,
        }
        self.since.anything = true;
        Ok(())
    }

    fn accept_static(&mut self, content: &Content) -> Result<(), Defect> {
        if self.static_data_end {
            return Err(Defect::Order("static data has ended"));
        }
        match *content {
            Content::PvInfo(_) if self.guest.is_some() => Err(Defect::Order("there has been one")),
            Content::PvInfo(guest) => {
                self.guest = Some(guest);
                Ok(())
            }
            _ => self.needs_version_3(),
        }
    }

    fn accept_dynamic(&mut self, content: &Content) -> Result<(), Defect> {
        if self.kind == DomainType::Pv && self.guest.is_none() {
            return Err(Defect::Order("X86_PV_INFO must come before"));
        }
        if self.version >= 3 && !self.static_data_end {
            return Err(Defect::Order("STATIC_DATA_END must come before"));
        }
        match *content {
            Content::P2mFrames(frames) => {
                self.before_vcpus()?;
                // A version 2 stream has no STATIC_DATA_END; the data ends here all the same.
                self.static_data_end = true;
                self.last_pfn = self.last_pfn.max(Some(frames.last));
            }
            Content::PageData { .. } => {
                if self.kind == DomainType::Pv {
                    if self.last_pfn.is_none() {
                        return Err(Defect::Order("X86_PV_P2M_FRAMES must come before"));
                    }
                    self.before_vcpus()?;
                }
                self.static_data_end = true;
                self.since.pages = true;
            }
            Content::Vcpu { part, id, size } => {
                if !self.since.pages && self.checkpoints == 0 {
                    return Err(Defect::Order("PAGE_DATA must come before"));
                }
                self.since.vcpus = true;
                self.since.vcpu0 |= part == VcpuPart::Basic && id == 0 && size > 0;
            }
            Content::HvmContext => self.since.context = true,
            _ => {}
        }
        Ok(())
    }

    /// Everything that a receiver needs must be there at the end and at each checkpoint.
    fn accept_end(&self) -> Result<(), Defect> {
        if self.checkpoints > 0 && !self.since.anything {
            return Ok(());
        }
        if self.kind == DomainType::Pv && self.guest.is_none() {
            return Err(Defect::Missing("X86_PV_INFO"));
        }
        if self.version >= 3 && !self.static_data_end {
            return Err(Defect::Missing("STATIC_DATA_END"));
        }
        match self.kind {
            DomainType::Pv if self.last_pfn.is_none() => Err(Defect::Missing("X86_PV_P2M_FRAMES")),
            DomainType::Pv if !self.since.pages && self.checkpoints == 0 => {
                Err(Defect::Missing("PAGE_DATA"))
            }
            DomainType::Pv if !self.since.vcpu0 => {
                Err(Defect::Missing("X86_PV_VCPU_BASIC of vCPU 0"))
            }
            DomainType::Hvm if !self.since.context => Err(Defect::Missing("HVM_CONTEXT")),
            _ => Ok(()),
        }
    }

    fn before_vcpus(&self) -> Result<(), Defect> {
        if self.since.vcpus {
            return Err(Defect::Order("vCPUs have come, which need all memory"));
        }
        Ok(())
    }

    fn needs_version_3(&self) -> Result<(), Defect> {
        if self.version < 3 {
            return Err(Defect::Order("version 2 of the format does not have it"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Order;
    use crate::libxc::{
        Content, DomainHeader, DomainType, ImageHeader, P2mFrames, PvInfo, TscInfo, VcpuPart,
    };

    const INFO: Content = Content::PvInfo(PvInfo::Bits64);
    const P2M: Content = Content::P2mFrames(P2mFrames { first: 0, last: 9 });
    const PAGES: Content = Content::PageData { count: 1, pages: 1 };
    const TSC: Content = Content::TscInfo(TscInfo {
        mode: 0,
        khz: 0,
        elapsed_ns: 0,
        incarnation: 0,
    });
    const VCPU: Content = Content::Vcpu {
        part: VcpuPart::Basic,
        id: 0,
        size: 0x1430,
    };
    const STATIC_END: Content = Content::StaticDataEnd;
    const CPUID: Content = Content::CpuidPolicy { leaves: 1 };
    const PARAMS: Content = Content::HvmParams { count: 1 };

    /// The complaint about these records, if any.
    fn complaint(version: u32, kind: DomainType, records: &[Content]) -> Option<String> {
        let domain = DomainHeader {
            kind,
            xen_major: 4,
            xen_minor: 17,
        };
        let mut order = Order::new(ImageHeader { version }, domain);
        records
            .iter()
            .find_map(|content| order.accept(content).err())
            .map(|defect| defect.to_string())
    }

    fn pv(records: &[Content]) -> Option<String> {
        complaint(3, DomainType::Pv, records)
    }

    fn hvm(records: &[Content]) -> Option<String> {
        complaint(3, DomainType::Hvm, records)
    }

    #[test]
    fn orders_that_writers_use_are_accepted() {
        let pv_stream = [
            INFO,
            CPUID,
            STATIC_END,
            P2M,
            PAGES,
            PAGES,
            TSC,
            Content::SharedInfo,
            VCPU,
            Content::End,
        ];
        assert_eq!(pv(&pv_stream), None);
        for (first, second) in [(Content::HvmContext, PARAMS), (PARAMS, Content::HvmContext)] {
            let stream = [STATIC_END, PAGES, TSC, first, second, Content::End];
            assert_eq!(hvm(&stream), None);
        }
        let old = [INFO, P2M, PAGES, VCPU, Content::End];
        assert_eq!(complaint(2, DomainType::Pv, &old), None);
    }

    #[test]
    fn static_data_comes_first() {
        let told = |text: Option<String>, part: &str| assert!(text.unwrap().contains(part));
        told(hvm(&[PAGES]), "STATIC_DATA_END must come before");
        told(hvm(&[STATIC_END, STATIC_END]), "there has been one");
        told(hvm(&[STATIC_END, CPUID]), "static data has ended");
        told(pv(&[STATIC_END]), "X86_PV_INFO is missing");
        told(pv(&[INFO, INFO]), "there has been one");
        told(pv(&[Content::SharedInfo]), "X86_PV_INFO must come before");
        told(
            complaint(2, DomainType::Hvm, &[STATIC_END]),
            "version 2 of the format",
        );
        told(
            complaint(2, DomainType::Pv, &[INFO, P2M, INFO]),
            "static data has ended",
        );
    }

    #[test]
    fn pv_records_depend_on_each_other() {
        let told = |text: Option<String>, part: &str| assert!(text.unwrap().contains(part));
        let base = [INFO, STATIC_END];
        let with = |more: &[Content]| pv(&[&base, more].concat());
        told(with(&[PAGES]), "X86_PV_P2M_FRAMES must come before");
        told(with(&[P2M, VCPU]), "PAGE_DATA must come before");
        told(with(&[P2M, PAGES, VCPU, PAGES]), "vCPUs have come");
        told(with(&[P2M, PAGES, VCPU, P2M]), "vCPUs have come");
        assert_eq!(with(&[P2M, PAGES, P2M, PAGES, VCPU, Content::End]), None);
        told(with(&[Content::HvmContext]), "stream of a PV guest");
        told(hvm(&[INFO]), "stream of an HVM guest");
    }

    #[test]
    fn an_end_needs_all_that_a_receiver_needs() {
        let told = |text: Option<String>, part: &str| {
            let text = text.unwrap();
            assert!(text.contains(part) && text.contains("missing"), "{text}");
        };
        told(pv(&[Content::End]), "X86_PV_INFO");
        told(pv(&[INFO, Content::End]), "STATIC_DATA_END");
        told(pv(&[INFO, STATIC_END, Content::End]), "X86_PV_P2M_FRAMES");
        told(pv(&[INFO, STATIC_END, P2M, Content::End]), "PAGE_DATA");
        let empty = Content::Vcpu {
            part: VcpuPart::Basic,
            id: 0,
            size: 0,
        };
        let records = [INFO, STATIC_END, P2M, PAGES, empty, Content::End];
        told(pv(&records), "X86_PV_VCPU_BASIC of vCPU 0");
        told(hvm(&[STATIC_END, PAGES, Content::End]), "HVM_CONTEXT");
        told(
            hvm(&[STATIC_END, PAGES, Content::Checkpoint]),
            "HVM_CONTEXT",
        );
    }

    #[test]
    fn each_checkpoint_is_complete() {
        let first = [STATIC_END, PAGES, Content::HvmContext, Content::Checkpoint];
        let with = |more: &[Content]| hvm(&[&first, more].concat());
        assert_eq!(with(&[Content::End]), None);
        assert_eq!(with(&[PAGES, Content::HvmContext, Content::End]), None);
        assert!(with(&[PAGES, Content::End]).unwrap().contains("missing"));
        let again = [INFO, STATIC_END, P2M, PAGES, VCPU, Content::Checkpoint];
        let more = [PAGES, VCPU, Content::Checkpoint, VCPU, Content::End];
        assert_eq!(pv(&[&again[..], &more[..]].concat()), None);
    }

    #[test]
    fn nothing_follows_the_end() {
        let records = [STATIC_END, PAGES, Content::HvmContext, Content::End, TSC];
        assert!(hvm(&records).unwrap().contains("END was the last"));
    }
}
