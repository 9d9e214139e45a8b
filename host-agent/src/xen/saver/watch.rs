//! Notices each start of libxl's helper, however short its life.
//!
//! A helper that is killed leaves log-dirty mode as it was, and no other trace; what it took from the dirty
//! bitmap is lost.  The kernel can report each opening of a file (fanotify), and starting a program opens it,
//! so nothing has to poll until then.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify;

use super::saver;

/// Xen's own programs are below these folders, whose names Debian and Xen choose.
const ROOTS: [&str; 4] = [
    "/usr/lib",
    "/usr/libexec",
    "/usr/local/lib",
    "/usr/local/libexec",
];
const PROGRAM: &str = "bin/libxl-save-helper";

/// A program is opened shortly before its process has its name and arguments: pauses between two looks.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

/// Watches for helpers of one domain until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The latest helper's process ID; 0 if there was none.
    seen: Arc<AtomicU32>,
    stop: Arc<OwnedFd>,
}

impl Watch {
    /// Starts to watch.
    ///
    /// # Errors
    /// If there is no such program, or the kernel cannot report its starts.
    pub(crate) fn begin(domid: u16) -> io::Result<Self> {
        let programs = programs(&ROOTS.map(Path::new));
        let find = move || saver(Path::new(super::PROC), domid);
        Self::of(&programs, find)
    }

    fn of(
        programs: &[PathBuf],
        find: impl Fn() -> io::Result<Option<u32>> + Send + 'static,
    ) -> io::Result<Self> {
        if programs.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{PROGRAM} is not installed"),
            ));
        }
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let starts = inotify::init(flags)?;
        for program in programs {
            inotify::add_watch(&starts, program, inotify::WatchFlags::OPEN)?;
        }
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let seen = Arc::new(AtomicU32::new(0));
        let (to, until) = (seen.clone(), stop.clone());
        let thread = thread::Builder::new().name("helpers".to_owned());
        thread.spawn(move || {
            if let Err(error) = look_out(&starts, &until, &to, find) {
                log::warn!("no longer watching for the toolstack's helpers: {error}");
            }
        })?;
        Ok(Self { seen, stop })
    }

    /// The process that saves or migrates the domain, or has done so.
    pub(crate) fn seen(&self) -> Option<u32> {
        Some(self.seen.load(Ordering::Acquire)).filter(|process| *process != 0)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Cannot fail: the counter is at 0.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
    }
}

fn look_out(
    starts: &OwnedFd,
    stop: &OwnedFd,
    seen: &AtomicU32,
    find: impl Fn() -> io::Result<Option<u32>>,
) -> io::Result<()> {
    loop {
        let mut ends = [
            PollFd::new(starts, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut ends, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !ends[1].revents().is_empty() {
            return Ok(());
        }
        // Which of the programs was started does not matter.
        let mut events = [0_u8; 4096];
        while rustix::io::read(starts, &mut events).is_ok_and(|length| length != 0) {}
        for pause in LOOKS {
            thread::sleep(pause);
            match find() {
                Ok(None) => {}
                Ok(Some(process)) => {
                    seen.store(process, Ordering::Release);
                    break;
                }
                // This look is lost; the next start is reported all the same.
                Err(error) => log::warn!("cannot list processes: {error}"),
            }
        }
    }
}

/// The helpers of each installed release of libxl.
fn programs(roots: &[&Path]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in roots {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let is_xens = entry.file_name().to_string_lossy().starts_with("xen");
            let program = entry.path().join(PROGRAM);
            if is_xens && program.is_file() {
                found.push(program);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use super::{Watch, programs};

    #[test]
    fn a_start_is_noticed_though_nobody_looks() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("xen-4.17/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(folder.path().join("other/bin")).unwrap();
        let program = bin.join("libxl-save-helper");
        fs::write(&program, "").unwrap();
        fs::write(folder.path().join("other/bin/libxl-save-helper"), "").unwrap();
        let found = programs(&[folder.path()]);
        assert_eq!(found, vec![program.clone()]);
        let process = Arc::new(AtomicU32::new(0));
        let now = process.clone();
        let find = move || Ok(Some(now.load(Ordering::Relaxed)).filter(|process| *process != 0));
        let watch = Watch::of(&found, find).unwrap();
        assert_eq!(watch.seen(), None);
        process.store(7, Ordering::Relaxed);
        drop(File::open(&program).unwrap());
        let until = Instant::now() + Duration::from_secs(60);
        while watch.seen().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(watch.seen(), Some(7));
        // Without a helper there is nothing to watch.
        Watch::of(&[], || Ok(None)).unwrap_err();
    }
}
