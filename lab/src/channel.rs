//! The lab's end of the wire to a host's agent: commands and files, any number at once.

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use unmoved_lab_agent::{FileRequest, Frame, Kind, WINDOW_BYTES};

use crate::log::Log;
use crate::trace::{Span, Trace};

/// Towards the guest the port takes small pieces; larger frames would only wait longer.
const STDIN_PIECE: usize = 32 << 10;

/// A connection to the agent of one host.
#[derive(Debug)]
pub struct Channel {
    shared: Arc<Shared>,
    window: Mutex<PathBuf>,
}

#[derive(Debug)]
struct Shared {
    wire: Mutex<Wire>,
    tasks: Mutex<Tasks>,
    trace: Trace,
}

/// The way to the agent.
struct Wire(Box<dyn Write + Send>);

impl Debug for Wire {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        out.write_str("Wire")
    }
}

#[derive(Debug, Default)]
struct Tasks {
    last: u32,
    open: HashMap<u32, Sender<Frame>>,
    gone: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn send(&self, kind: Kind, task: u32, payload: Vec<u8>) -> Result<()> {
        let frame = Frame {
            kind,
            task,
            payload,
        };
        frame
            .write_to(&mut lock(&self.wire).0)
            .context("the host is gone")
    }

    fn open(&self) -> Result<(u32, Receiver<Frame>)> {
        let mut tasks = lock(&self.tasks);
        if tasks.gone {
            bail!("the host is gone");
        }
        tasks.last += 1;
        let task = tasks.last;
        let (sender, frames) = mpsc::channel();
        tasks.open.insert(task, sender);
        Ok((task, frames))
    }
}

impl Channel {
    /// Use both ways of a wire to the agent's port; `window` is the file behind the window disk, `trace` for
    /// what takes time.
    #[must_use]
    pub fn new(
        mut reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        window: PathBuf,
        trace: Trace,
    ) -> Self {
        let shared = Arc::new(Shared {
            wire: Mutex::new(Wire(Box::new(writer))),
            tasks: Mutex::default(),
            trace,
        });
        let dispatch = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok(frame) = Frame::read_from(&mut reader) {
                let mut tasks = lock(&dispatch.tasks);
                let (task, last) = (frame.task, matches!(frame.kind, Kind::Exit | Kind::Failed));
                if let Some(inbox) = tasks.open.get(&task)
                    && (inbox.send(frame).is_err() || last)
                {
                    tasks.open.remove(&task);
                }
            }
            let mut tasks = lock(&dispatch.tasks);
            tasks.gone = true;
            tasks.open.clear();
        });
        Self {
            shared,
            window: Mutex::new(window),
        }
    }

    /// Wait until the agent answers.
    ///
    /// # Errors
    /// If it does not within the limit.
    pub fn hello(&self, limit: Duration) -> Result<()> {
        let (task, frames) = self.shared.open()?;
        self.shared.send(Kind::Hello, task, Vec::new())?;
        match frames.recv_timeout(limit) {
            Ok(_) => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "the host's agent did not answer within {} s",
                    limit.as_secs()
                )
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the host ended before its agent answered")
            }
        }
    }

    /// Start a command; `words` is its argument vector.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn start(&self, words: &[&str]) -> Result<Task> {
        let (number, frames) = self.shared.open()?;
        let mut argv = Vec::new();
        for word in words {
            argv.extend_from_slice(word.as_bytes());
            argv.push(0);
        }
        self.shared.send(Kind::Start, number, argv)?;
        let task = Task {
            shared: Arc::clone(&self.shared),
            number,
            name: words.join(" "),
            stdout: Log::default(),
            stderr: Log::default(),
            end: Arc::default(),
        };
        let (relay, span) = (task.clone(), self.shared.trace.begin(words.join(" ")));
        thread::spawn(move || relay.collect(&frames, span));
        Ok(task)
    }

    /// Copy a file into the host; folders are made, an old file is replaced.
    ///
    /// # Errors
    /// If either file cannot be used, or the host does not manage within the limit.
    pub fn copy_in(&self, from: &Path, to: &str, limit: Duration) -> Result<()> {
        let window = lock(&self.window);
        let _span = self.shared.trace.begin(format!("copy in {to}"));
        let mut file =
            File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        let meta = file.metadata()?;
        let mut offset = 0;
        loop {
            let length = (meta.len() - offset).min(WINDOW_BYTES);
            let mut disk = File::options().write(true).open(&*window)?;
            std::io::copy(&mut Read::by_ref(&mut file).take(length), &mut disk)?;
            let request = FileRequest {
                offset,
                length,
                mode: meta.permissions().mode() & 0o7777,
                path: to.to_owned(),
            };
            self.transfer(Kind::Store, &request, limit)?;
            offset += length;
            if offset >= meta.len() {
                return Ok(());
            }
        }
    }

    /// Copy a file out of the host.
    ///
    /// # Errors
    /// If either file cannot be used, or the host does not manage within the limit.
    pub fn copy_out(&self, from: &str, to: &Path, limit: Duration) -> Result<()> {
        let window = lock(&self.window);
        let _span = self.shared.trace.begin(format!("copy out {from}"));
        let mut file =
            File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut offset = 0;
        loop {
            let request = FileRequest {
                offset,
                length: WINDOW_BYTES,
                mode: 0,
                path: from.to_owned(),
            };
            let moved = self.transfer(Kind::Load, &request, limit)?;
            let mut disk = File::open(&*window)?;
            disk.seek(SeekFrom::Start(0))?;
            std::io::copy(&mut disk.take(moved.bytes), &mut file)?;
            offset += moved.bytes;
            if moved.bytes == 0 || offset >= moved.size {
                fs::set_permissions(to, fs::Permissions::from_mode(moved.mode))?;
                return Ok(());
            }
        }
    }

    fn transfer(&self, kind: Kind, request: &FileRequest, limit: Duration) -> Result<Moved> {
        let (task, frames) = self.shared.open()?;
        self.shared.send(kind, task, request.encode())?;
        let frame = frames.recv_timeout(limit).with_context(|| {
            format!(
                "copying {} was not done within {} s",
                request.path,
                limit.as_secs()
            )
        })?;
        if frame.kind != Kind::Done {
            bail!("cannot copy: {}", String::from_utf8_lossy(&frame.payload));
        }
        Moved::decode(&frame.payload).context("the agent's answer is broken")
    }
}

struct Moved {
    bytes: u64,
    size: u64,
    mode: u32,
}

impl Moved {
    fn decode(payload: &[u8]) -> Option<Self> {
        Some(Self {
            bytes: u64::from_le_bytes(payload.get(0..8)?.try_into().ok()?),
            size: u64::from_le_bytes(payload.get(8..16)?.try_into().ok()?),
            mode: u32::from_le_bytes(payload.get(16..20)?.try_into().ok()?),
        })
    }
}

/// A command that runs (or ran) on a host; clones are the same command.
#[derive(Clone, Debug)]
pub struct Task {
    shared: Arc<Shared>,
    number: u32,
    name: String,
    /// What it wrote to its standard output so far.
    pub stdout: Log,
    /// What it wrote to its standard error so far.
    pub stderr: Log,
    end: Arc<Mutex<Option<std::result::Result<i32, String>>>>,
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code, 128 + n if signal n ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Task {
    fn collect(&self, frames: &Receiver<Frame>, span: Span) {
        let mut end = Err("the host is gone".to_owned());
        for frame in frames {
            match frame.kind {
                Kind::Stdout => self.stdout.append(&frame.payload),
                Kind::Stderr => self.stderr.append(&frame.payload),
                Kind::Exit => {
                    let code = frame.payload.try_into().map_or(-1, i32::from_le_bytes);
                    end = Ok(code);
                    break;
                }
                _ => {
                    end = Err(String::from_utf8_lossy(&frame.payload).into_owned());
                    break;
                }
            }
        }
        *lock(&self.end) = Some(end);
        drop(span);
        // Closing is the signal that the end is known.
        self.stderr.close();
        self.stdout.close();
    }

    /// Note that something begins that is seen in its output.
    pub(crate) fn begin(&self, what: String) -> Span {
        self.shared.trace.begin(what)
    }

    /// Give bytes to its standard input.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(STDIN_PIECE) {
            self.shared.send(Kind::Stdin, self.number, piece.to_vec())?;
        }
        Ok(())
    }

    /// End its standard input.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn end_input(&self) -> Result<()> {
        self.shared.send(Kind::StdinEnd, self.number, Vec::new())
    }

    /// Send its process group a signal.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn signal(&self, signal: u8) -> Result<()> {
        self.shared.send(Kind::Signal, self.number, vec![signal])
    }

    /// Wait until it ends; at the limit it is killed.
    ///
    /// # Errors
    /// If it cannot be started, does not end in time, or the host goes away.
    pub fn wait(&self, limit: Duration) -> Result<Output> {
        let until = Instant::now() + limit;
        let mut mark = 0;
        while !self.stdout.is_closed() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.signal(9)?;
                bail!(
                    "`{}` did not end within {} s; it said: {}{}",
                    self.name,
                    limit.as_secs(),
                    self.stdout.text(),
                    self.stderr.text()
                );
            }
            if let Some(new) = self.stdout.more(mark, left) {
                mark += new.len();
            }
        }
        let end = lock(&self.end).clone();
        match end {
            Some(Ok(code)) => Ok(Output {
                code,
                stdout: self.stdout.text(),
                stderr: self.stderr.text(),
            }),
            Some(Err(reason)) => bail!("`{}`: {reason}", self.name),
            None => bail!("`{}`: the host is gone", self.name),
        }
    }
}
