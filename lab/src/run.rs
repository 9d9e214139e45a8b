//! The folder of one run: disks and logs, removed when all went well, and after a crash by the next run.
//!
//! A run holds a lock on its folder while it lives.  A folder without a holder is a dead run's: it is
//! swept, unless it says that it was kept for its logs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::{cache, paths};

const KEPT: &str = "kept";
/// Kept logs older than this are swept too.
const OLD: Duration = Duration::from_secs(7 * 24 * 3600);

/// Folders to remove when the program is interrupted.
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A folder that lives as long as this value.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Make a folder for the run called `name`, and sweep what dead runs left.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        clean_on_interrupt();
        let all = paths::target().join("lab");
        fs::create_dir_all(&all).with_context(|| format!("cannot write to {}", all.display()))?;
        sweep(&all);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = all.join(format!("{name}-{}-{number}", std::process::id()));
        cache::remove(&path)?;
        fs::create_dir(&path).with_context(|| format!("cannot write to {}", all.display()))?;
        live().push(path.clone());
        let lock = File::create(path.join("lock"))?;
        // A run that cannot lock its folder could be swept: give up at once.
        if !try_lock(&lock) {
            return Err(io::Error::last_os_error()).context("cannot lock the run's folder");
        }
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keep the logs (not the disks) and give their folder back.
    #[must_use]
    pub fn keep(self) -> PathBuf {
        // What cannot be tidied is merely larger.
        let _ = tidy(&self.path);
        let _ = File::create(self.path.join(KEPT));
        live().retain(|path| *path != self.path);
        let path = self.path.clone();
        drop(self);
        path
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if !self.path.join(KEPT).exists() {
            let _ = fs::remove_dir_all(&self.path);
        }
        live().retain(|path| *path != self.path);
    }
}

fn live() -> std::sync::MutexGuard<'static, Vec<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// On Ctrl-C and the like, remove the folders of this program's runs, then end; the machines die with it.
pub fn clean_on_interrupt() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
            return;
        };
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                for path in live().iter() {
                    let _ = fs::remove_dir_all(path);
                }
                std::process::exit(128 + signal);
            }
        });
    });
}

fn try_lock(file: &File) -> bool {
    file.try_lock().is_ok()
}

fn sweep(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(lock) = File::open(path.join("lock")) else {
            continue;
        };
        let old = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok())
            .is_some_and(|age| age > OLD);
        if (old || !path.join(KEPT).exists()) && try_lock(&lock) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Remove the disks below `folder`.
fn tidy(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            tidy(&entry.path())?;
        } else if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "img" || extension == "image")
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
