//! What is understood of kernels' notes, and which kernels are refused.

use xen_abi::elfnote;

use super::synthetic::{Load, elf, linux_notes, note, number};
use crate::boot::{Kernel, KernelError, NoteError};

const BASE: u64 = 0xffff_ffff_8000_0000;

fn load() -> Load {
    Load {
        paddr: 0x1000,
        bytes: vec![0x90; 0x2000],
        mem_size: 0x2000,
        file_skew: 0,
    }
}

fn parse(notes: &[u8]) -> Result<Kernel, KernelError> {
    Kernel::parse(&elf(&[load()], notes, &[]))
}

#[test]
fn the_notes_of_linux_are_understood() {
    let notes = [
        linux_notes(BASE + 0x1230),
        number(elfnote::INIT_P2M, 1 << 39),
        note(elfnote::MOD_START_PFN, &[1, 0, 0, 0]),
        note(elfnote::SUPPORTED_FEATURES, &[0x01, 0x88, 0, 0]),
        note(elfnote::SUSPEND_CANCEL, &[1, 0, 0, 0]),
        note(
            elfnote::L1_MFN_VALID,
            &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ),
        note(elfnote::PAE_MODE, b"yes\0"),
        number(elfnote::HV_START_LOW, 0xffff_8000_0000_0000),
        number(elfnote::PHYS32_ENTRY, 0x1000),
        note(999, b"whatever"),
    ]
    .concat();
    let kernel = parse(&notes).expect("a good kernel");
    assert_eq!((kernel.virt_base, kernel.entry), (BASE, BASE + 0x1230));
    let notes = kernel.notes;
    assert_eq!(notes.init_p2m, Some(1 << 39));
    assert_eq!(notes.hypercall_page, None);
    assert!(notes.mod_start_pfn && notes.suspend_cancel && !notes.legacy);
    assert_eq!(notes.l1_mfn_valid, Some((1, 1)));
    assert_eq!(notes.supported_features, 0x8811);
    assert_eq!(notes.guest_os.as_deref(), Some("linux"));
    assert_eq!(notes.pae_mode.as_deref(), Some("yes"));
    assert_eq!(notes.hv_start_low, Some(0xffff_8000_0000_0000));
}

#[test]
fn notes_in_a_section_count_when_there_is_no_segment() {
    let notes = linux_notes(BASE + 0x1000);
    let kernel = Kernel::parse(&elf(&[load()], &[], &[(".note.Xen", &notes)]));
    assert_eq!(kernel.expect("a good kernel").entry, BASE + 0x1000);
}

#[test]
fn the_text_section_of_old_kernels_is_understood() {
    let text = b"GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,\
        HYPERCALL_PAGE=0x2,FEATURES=writable_page_tables|auto_translated_physmap,\
        VIRT_ENTRY=0xffffffff80001000,LOADER=generic\0junk";
    let old = Load {
        paddr: BASE + 0x1000,
        ..load()
    };
    let kernel = Kernel::parse(&elf(&[old], &[], &[("__xen_guest", text)])).expect("good");
    assert_eq!((kernel.virt_base, kernel.entry), (BASE, BASE + 0x1000));
    assert_eq!(kernel.segments[0].target, 0x1000);
    assert_eq!(kernel.notes.hypercall_page, Some(BASE + 0x2000));
    assert_eq!(kernel.notes.supported_features, 0b101);
    assert!(kernel.notes.legacy);
}

#[test]
fn kernels_that_can_not_run_are_refused_by_name() {
    let linux = |more: Vec<u8>| parse(&[linux_notes(BASE + 0x1000), more].concat());
    let missing = |name: &str| Err(KernelError::Notes(NoteError::MissingFeature(name.into())));
    let features = |list: &[u8]| linux(note(elfnote::FEATURES, list)).map(|_| ());
    assert_eq!(
        features(b"a|!auto_translated_physmap"),
        missing("auto_translated_physmap")
    );
    assert_eq!(
        features(b"!supervisor_mode_kernel"),
        missing("supervisor_mode_kernel")
    );
    assert_eq!(
        features(b"!flux_compensator|dom0"),
        missing("flux_compensator")
    );
    assert_eq!(
        features(b"flux_compensator|dom0|!writable_page_tables"),
        Ok(())
    );
    let version = linux(note(elfnote::XEN_VERSION, b"xen-2.0\0"));
    assert_eq!(
        version.err(),
        Some(KernelError::Notes(NoteError::OtherInterface(
            "xen-2.0".into()
        )))
    );
    let long = linux(note(elfnote::ENTRY, &[0; 9]));
    assert_eq!(
        long.err(),
        Some(KernelError::Notes(NoteError::Malformed(elfnote::ENTRY)))
    );
    let pvh = parse(&number(elfnote::PHYS32_ENTRY, 0x1000));
    assert_eq!(pvh.err(), Some(KernelError::OnlyPvh));
    let outside = linux(number(elfnote::ENTRY, BASE + 0x3000));
    assert_eq!(
        outside.err(),
        Some(KernelError::Outside("entry point", BASE + 0x3000))
    );
    for page in [BASE + 0x1010, BASE + 0x3000, BASE - 0x1000] {
        let outside = linux(number(elfnote::HYPERCALL_PAGE, page));
        assert_eq!(
            outside.err(),
            Some(KernelError::Outside("hypercall page", page))
        );
    }
    assert_eq!(parse(&[]).err(), Some(KernelError::NotXen));
}

#[test]
fn other_machines_are_refused_by_name() {
    let mut image = elf(&[load()], &linux_notes(BASE + 0x1000), &[]);
    image[18] = 3;
    assert_eq!(Kernel::parse(&image).err(), Some(KernelError::ThirtyTwoBit));
    image[18] = 183;
    assert_eq!(
        Kernel::parse(&image).err(),
        Some(KernelError::OtherMachine(183))
    );
}
