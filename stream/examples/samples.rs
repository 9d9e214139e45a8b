//! Writes small streams of each kind to folders: what the fuzz targets begin with.
//!
//! `cargo run -p unmoved-stream --features testing --example samples FOLDER`

use std::fs;
use std::path::PathBuf;

use unmoved_stream::legacy::Width;
use unmoved_stream::libxc::PvInfo;
use unmoved_stream::testing::{Guest, LegacySample, Sample};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("name a folder")?);
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    };
    let guests = [
        ("pv64", Guest::Pv(PvInfo::Bits64)),
        ("pv32", Guest::Pv(PvInfo::Bits32)),
        ("hvm", Guest::Hvm),
    ];
    for (name, guest) in guests {
        for version in [2, 3] {
            let sample = Sample {
                version,
                pages: 1,
                vcpus: 1,
                ..Sample::new(guest)
            };
            let name = |layer: &str| format!("{layer}-v{version}-{name}");
            let libxc = sample.libxc(Vec::new())?;
            write("reader", &name("libxc"), &libxc)?;
            write("reader", &name("libxl"), &sample.libxl(Vec::new())?)?;
            write("reader", &name("xl"), &sample.xl(Vec::new())?)?;
            write("reader", &name("remus"), &sample.remus(Vec::new(), 2)?)?;
            // Without its headers: the target puts them there, as the first byte says.
            let kind = if guest == Guest::Hvm { 16 } else { 0 };
            let choice = u8::try_from(version - 2)? << 3 | kind;
            let records = [&[choice, 0b0001_1011], &libxc[40..]].concat();
            write("records", &name("libxc"), &records)?;
        }
        for width in [Width::Bits32, Width::Bits64] {
            for xl in [false, true] {
                let sample = LegacySample {
                    pages: 1,
                    vcpus: 2,
                    xl,
                    empty_batch: xl,
                    ..LegacySample::new(width, guest)
                };
                let bytes = sample.write(vec![if xl { 0 } else { 64 }])?;
                write("convert", &format!("{name}-{}-{xl}", width.bits()), &bytes)?;
            }
        }
    }
    Ok(())
}
