//! The lab's agent in dom0: starts commands and moves files for the lab outside.
//!
//! It is started by the image's init, looks for its port and its window by name (a machine without virtio
//! has its second serial port and an IDE disk for them), and serves frames until the machine ends.  It
//! keeps no state between tasks, so a snapshot may be taken whenever no task runs.  A broken request
//! gets `Failed`; a broken *port* ends the agent (init starts it anew).

#![expect(unsafe_code, reason = "std has neither kill nor termios")]

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use unmoved_lab_agent::{
    FileRequest, Frame, Kind, MAX_PAYLOAD, PORT_NAME, SERIAL_LINE, WINDOW_SERIAL,
};

/// Direct I/O wants whole, aligned blocks; one piece of a transfer.
const PIECE: usize = 1 << 20;
const BLOCK: usize = 4096;

fn main() {
    if let Err(error) = serve() {
        eprintln!("lab agent: {error}");
        std::process::exit(1);
    }
}

/// The port to the lab, shared by all threads that have something to say.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn send(&self, kind: Kind, task: u32, payload: Vec<u8>) {
        let frame = Frame {
            kind,
            task,
            payload,
        };
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = frame.write_to(&mut *port) {
            eprintln!("lab agent: port: {error}");
            std::process::exit(1);
        }
    }

    fn fail(&self, task: u32, error: &dyn std::fmt::Display) {
        self.send(Kind::Failed, task, error.to_string().into_bytes());
    }
}

/// What the lab can still tell a running command.
enum Input {
    Bytes(Vec<u8>),
    End,
}

struct Running {
    group: i32,
    input: mpsc::Sender<Input>,
}

type Tasks = Arc<Mutex<HashMap<u32, Running>>>;

fn serve() -> io::Result<()> {
    let mut from_lab = open_port()?;
    // What comes before that may be lost on a serial line.
    println!("lab agent: listens");
    let port = Port(Arc::new(Mutex::new(from_lab.try_clone()?)));
    let tasks = Tasks::default();
    loop {
        let frame = Frame::read_from(&mut from_lab)?;
        handle(frame, &port, &tasks);
    }
}

fn handle(frame: Frame, port: &Port, tasks: &Tasks) {
    let task = frame.task;
    match frame.kind {
        Kind::Hello => port.send(Kind::Hello, task, frame.payload),
        Kind::Start => {
            if let Err(error) = start(task, &frame.payload, port, tasks) {
                port.fail(task, &error);
            }
        }
        Kind::Stdin | Kind::StdinEnd => {
            let input = if frame.kind == Kind::Stdin {
                Input::Bytes(frame.payload)
            } else {
                Input::End
            };
            let tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(running) = tasks.get(&task) {
                // A command that has closed its input does not want it: not an error.
                let _ = running.input.send(input);
            }
        }
        Kind::Signal => {
            let tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Some(running), Some(&signal)) = (tasks.get(&task), frame.payload.first()) {
                // SAFETY: kill(2) touches no memory; the group is that of a child not yet waited for,
                // since it is still in the table.
                unsafe { libc::kill(-running.group, i32::from(signal)) };
            }
        }
        Kind::Store | Kind::Load => {
            let port = port.clone();
            // One window: the lab asks for one transfer at a time, but commands run on meanwhile.
            thread::spawn(move || match transfer(frame.kind, &frame.payload) {
                Ok(report) => port.send(Kind::Done, task, report),
                Err(error) => port.fail(task, &error),
            });
        }
        _ => port.fail(task, &"this kind of frame goes the other way"),
    }
}

/// Start a command with three pipes and a thread for each, plus one that waits for its end.
fn start(task: u32, argv: &[u8], port: &Port, tasks: &Tasks) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut words = argv
        .strip_suffix(&[0])
        .unwrap_or(argv)
        .split(|byte| *byte == 0)
        .map(std::ffi::OsStr::from_bytes);
    let program = words.next().unwrap_or_default();
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    let stdin = child.stdin.take().expect("asked for above");
    let stdout = child.stdout.take().expect("asked for above");
    let stderr = child.stderr.take().expect("asked for above");
    let (input, inputs) = mpsc::channel();
    let group = i32::try_from(child.id()).expect("a pid fits pid_t");
    tasks
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(task, Running { group, input });
    thread::spawn(move || feed(stdin, &inputs));
    let out = relay(task, Kind::Stdout, stdout, port.clone());
    let err = relay(task, Kind::Stderr, stderr, port.clone());
    let (port, tasks) = (port.clone(), Arc::clone(tasks));
    thread::spawn(move || {
        // Exit is reported when the *command* ends, even if a daemon it left behind still holds the
        // pipes: what came until then is sent first by `relay`, in order, if the pipes are closed.
        let status = child.wait();
        tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&task);
        let done = out.recv_timeout(DRAIN).is_ok();
        if done {
            let _ = err.recv_timeout(DRAIN);
        }
        let code = match status {
            Ok(status) => status
                .code()
                .or(status.signal().map(|signal| 128 + signal))
                .unwrap_or(-1),
            Err(_) => -1,
        };
        port.send(Kind::Exit, task, code.to_le_bytes().to_vec());
    });
    Ok(())
}

/// How long output may still come after a command's end when somebody else holds its pipe.
const DRAIN: std::time::Duration = std::time::Duration::from_millis(300);

fn feed(mut stdin: ChildStdin, inputs: &mpsc::Receiver<Input>) {
    while let Ok(Input::Bytes(bytes)) = inputs.recv() {
        if stdin.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn relay(
    task: u32,
    kind: Kind,
    mut from: impl Read + Send + 'static,
    port: Port,
) -> mpsc::Receiver<()> {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_PAYLOAD / 2];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            port.send(kind, task, buffer[..count].to_vec());
        }
        let _ = done.send(());
    });
    ended
}

/// Move one piece between a file and the window; the report is the payload of `Done`.
fn transfer(kind: Kind, request: &[u8]) -> io::Result<Vec<u8>> {
    let request = FileRequest::decode(request)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "broken file request"))?;
    let path = Path::new(&request.path);
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", request.path));
    let mut window = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(find_window()?)?;
    let mut space = vec![0u8; PIECE + BLOCK];
    let skip = space.as_ptr().align_offset(BLOCK);
    let buffer = &mut space[skip..skip + PIECE];
    let mut left = request.length;
    let mut moved = 0u64;
    let mut file;
    if kind == Kind::Store {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(named)?;
        }
        if request.offset == 0 {
            // A new inode: the old one may be a program that runs.
            let _ = fs::remove_file(path);
        }
        file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(named)?;
        file.seek(SeekFrom::Start(request.offset)).map_err(named)?;
        while left > 0 {
            let count = usize::try_from(left.min(PIECE as u64)).expect("at most PIECE");
            window.read_exact(&mut buffer[..count.next_multiple_of(BLOCK)])?;
            file.write_all(&buffer[..count]).map_err(named)?;
            left -= count as u64;
            moved += count as u64;
        }
        file.set_permissions(fs::Permissions::from_mode(request.mode & 0o7777))
            .map_err(named)?;
    } else {
        file = File::open(path).map_err(named)?;
        file.seek(SeekFrom::Start(request.offset)).map_err(named)?;
        while left > 0 {
            let want = usize::try_from(left.min(PIECE as u64)).expect("at most PIECE");
            let count = fill(&mut file, &mut buffer[..want]).map_err(named)?;
            if count == 0 {
                break;
            }
            window.write_all(&buffer[..count.next_multiple_of(BLOCK)])?;
            left -= count as u64;
            moved += count as u64;
        }
    }
    let meta = file.metadata().map_err(named)?;
    let mut report = moved.to_le_bytes().to_vec();
    report.extend_from_slice(&meta.len().to_le_bytes());
    report.extend_from_slice(&(meta.permissions().mode() & 0o7777).to_le_bytes());
    Ok(report)
}

/// Read until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read(&mut buffer[have..])? {
            0 => break,
            count => have += count,
        }
    }
    Ok(have)
}

/// The port with our name, or else the serial line.
fn open_port() -> io::Result<File> {
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    if let Some(path) = find("/sys/class/virtio-ports", "name", PORT_NAME) {
        return open(&path);
    }
    let line = open(Path::new(SERIAL_LINE))?;
    make_raw(&line)?;
    Ok(line)
}

/// Every byte goes through the line as it is, as fast as it can.
fn make_raw(line: &File) -> io::Result<()> {
    // SAFETY: all zeros are a valid value of this plain C struct.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for as long as `line` lives; `settings` is valid and writable.
    if unsafe { libc::tcgetattr(line.as_raw_fd(), &raw mut settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it only changes the valid struct that it is given.
    unsafe { libc::cfmakeraw(&raw mut settings) };
    settings.c_cflag &= !(libc::CRTSCTS | libc::CBAUD);
    settings.c_cflag |= libc::CLOCAL | libc::CREAD | libc::B115200;
    // SAFETY: as with tcgetattr; the struct is only read.
    if unsafe { libc::tcsetattr(line.as_raw_fd(), libc::TCSANOW, &raw const settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `/dev/…` of the disk with our serial number, or else of the IDE disk with that model name.
fn find_window() -> io::Result<PathBuf> {
    find("/sys/block", "serial", WINDOW_SERIAL)
        .or_else(|| find("/sys/block", "device/model", WINDOW_SERIAL))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no window disk"))
}

/// The device of this class that has such a value in a file of its folder.
fn find(class: &str, attribute: &str, value: &str) -> Option<PathBuf> {
    let mut devices = fs::read_dir(class).ok()?.flatten();
    let device = devices.find(|device| {
        let found = fs::read_to_string(device.path().join(attribute)).unwrap_or_default();
        found.trim() == value
    })?;
    Some(Path::new("/dev").join(device.file_name()))
}
