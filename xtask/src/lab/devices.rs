//! `cargo xtask lab devices`: a Debian guest's disk and card under load from the usual tools.
//!
//! fio writes, flushes and trims and reads all back with checksums, while iperf3 streams TCP and UDP both
//! ways between the guest and dom0; in rounds, until the time is over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use unmoved_lab::tools::Tools;
use unmoved_lab::{GuestPlan, Host, Lab};
use unmoved_tests::shell::{self, MOMENT, Shell};

use super::system::SystemName;

/// What to load, and for how long.
#[derive(Debug, Args)]
pub struct Devices {
    /// For how long, at least
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u64,
    /// What the kernel runs in
    #[arg(long, value_enum, default_value_t)]
    system: SystemName,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const GUEST: &str = "192.0.2.100";
/// Longest time of a round, on a loaded machine.
const ROUND: Duration = Duration::from_secs(900);
/// Seconds of each stream.
const STREAM: &str = "15";
/// Two jobs side by side on parts of the disk: what is written must be read; the other part is trimmed.
const JOBS: &str = "[global]
filename=/dev/xvdb
ioengine=libaio
direct=1
iodepth=32
[checked]
size=96m
rw=randwrite
bssplit=4k/50:16k/20:64k/15:256k/10:1m/5
fsync=64
verify=crc32c
verify_fatal=1
do_verify=1
verify_async=0
[trimmed]
offset=256m
size=64m
rw=randtrim
bs=64k
";

impl Devices {
    /// Do it.
    ///
    /// # Errors
    /// If fio or iperf3 reports an error, or the guest's kernel or the shim complains.
    pub fn run(self) -> Result<()> {
        let config = shell::host_with_debian()?;
        let mut plan = GuestPlan::debian("devices", self.system.system()?, &Tools::get()?)?;
        plan.disks.push("phy:/dev/vda,xvdb,w".to_owned());
        plan.nics.push("mac=02:00:00:00:01:01".to_owned());
        Lab::run("devices", &config, |lab| {
            let host = lab.host(0);
            let mark = host.serial().mark();
            let guest = plan.create(host)?;
            let mut shell = Shell::login(host, &guest)?;
            prepare(&mut shell)?;
            let begun = Instant::now();
            let mut rounds = Vec::new();
            while begun.elapsed() < Duration::from_secs(self.minutes * 60) {
                let round = round(host, &mut shell, rounds.len())?;
                println!("round {}: {}", rounds.len() + 1, round.tell());
                rounds.push(round);
            }
            let complaints = shell::shim_complaints(host.serial(), mark);
            let kernel = shell.kernel_complaints()?;
            let seconds = begun.elapsed().as_secs();
            println!(
                "{} rounds in {seconds} s: {} MiB written, {} MiB verified, {} trims; complaints: {} of the shim, \
                 {} of the guest's kernel",
                rounds.len(),
                sum(&rounds, |round| round.written) >> 20,
                sum(&rounds, |round| round.read) >> 20,
                sum(&rounds, |round| round.trims),
                complaints.len(),
                kernel.len()
            );
            for line in complaints.iter().chain(&kernel) {
                println!("complaint: {line}");
            }
            let rounds: Vec<Value> = rounds.iter().map(Round::to_json).collect();
            crate::json::write(
                self.json.as_deref(),
                &json!({"seconds": seconds, "rounds": rounds, "shim_complaints": complaints,
                        "kernel_complaints": kernel}),
            )?;
            ensure!(complaints.is_empty(), "the shim complains");
            ensure!(kernel.is_empty(), "the guest's kernel complains");
            Ok(())
        })
    }
}

fn prepare(shell: &mut Shell<'_>) -> Result<()> {
    shell.ok(
        &format!(
            "card=$(ls /sys/class/net | grep -v lo) && ip addr add {GUEST}/24 dev $card && ip link set $card up && iperf3 -s -D && cat >jobs <<'END'\n{JOBS}END\n"
        ),
        MOMENT,
    )?;
    shell.ok("ping -c 1 -w 60 192.0.2.1", MOMENT).map(drop)
}

/// fio's two jobs once, and beside them each kind of stream once.
fn round(host: &Host, shell: &mut Shell<'_>, number: usize) -> Result<Round> {
    shell.ok(
        &format!(
            "rm -f code; ( fio --randseed={} --output-format=json --output=report jobs \
             >said 2>&1 </dev/null; echo $? >code ) &",
            number + 1
        ),
        MOMENT,
    )?;
    let mut streams = Vec::new();
    for (name, words) in STREAMS {
        streams.push(stream(host, name, words)?);
    }
    let report = shell.ok(
        "wait; cat said >&2; cat report; exit_code=$(cat code); (exit $exit_code)",
        ROUND,
    )?;
    read(&report, streams)
}

/// Name, and what iperf3 is asked for.
const STREAMS: [(&str, &[&str]); 4] = [
    ("tcp_to_guest", &[]),
    ("tcp_from_guest", &["-R"]),
    ("udp_to_guest", &["-u", "-b", "20M"]),
    ("udp_from_guest", &["-u", "-b", "20M", "-R"]),
];

/// What one stream carried.
#[derive(Clone, Debug)]
struct Stream {
    name: &'static str,
    mbit_s: f64,
    /// Of UDP datagrams.
    lost_percent: Option<f64>,
}

fn stream(host: &Host, name: &'static str, words: &[&str]) -> Result<Stream> {
    let fixed = ["iperf3", "-c", GUEST, "-t", STREAM, "-J"];
    let output = host.run(&[&fixed, words].concat())?;
    let report: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{name}: iperf3 said {}{}", output.stdout, output.stderr))?;
    ensure!(
        output.code == 0 && report.get("error").is_none(),
        "{name}: iperf3: {}",
        report["error"]
    );
    read_stream(name, &report).with_context(|| format!("{name}: iperf3 gave no figures"))
}

fn read_stream(name: &'static str, report: &Value) -> Option<Stream> {
    let end = &report["end"];
    let sum = end.get("sum_received").or(end.get("sum"))?;
    let mbit_s = sum["bits_per_second"].as_f64()? / 1e6;
    (mbit_s > 0.0).then(|| Stream {
        name,
        mbit_s,
        lost_percent: end["sum"]["lost_percent"].as_f64(),
    })
}

/// What one round carried.
#[derive(Clone, Debug)]
struct Round {
    written: u64,
    read: u64,
    trims: u64,
    streams: Vec<Stream>,
}

impl Round {
    fn tell(&self) -> String {
        let mut text = format!(
            "{} MiB written, {} MiB verified, {} trims",
            self.written >> 20,
            self.read >> 20,
            self.trims
        );
        for stream in &self.streams {
            text += &format!(", {} {:.0} Mbit/s", stream.name, stream.mbit_s);
            if let Some(lost) = stream.lost_percent {
                text += &format!(" ({lost:.1} % lost)");
            }
        }
        text
    }

    fn to_json(&self) -> Value {
        let streams: Vec<Value> = self
            .streams
            .iter()
            .map(|stream| {
                json!({"name": stream.name, "mbit_s": stream.mbit_s,
                       "lost_percent": stream.lost_percent})
            })
            .collect();
        json!({"written_bytes": self.written, "verified_bytes": self.read, "trims": self.trims,
               "streams": streams})
    }
}

/// Read fio's report; its jobs must have done their work without an error.
fn read(report: &str, streams: Vec<Stream>) -> Result<Round> {
    // Notes may come before it, and the shell's word on its job after it.
    let text = &report[report.find("{\n").context("fio gave no report")?..];
    let report: Value = serde_json::Deserializer::from_str(text)
        .into_iter()
        .next()
        .context("fio gave no report")?
        .context("fio's report is torn")?;
    let job = |name: &str| {
        report["jobs"]
            .as_array()
            .and_then(|jobs| jobs.iter().find(|job| job["jobname"] == name))
            .with_context(|| format!("fio has no job {name}"))
    };
    let (checked, trimmed) = (job("checked")?, job("trimmed")?);
    for job in [checked, trimmed] {
        ensure!(
            job["error"] == 0,
            "fio: {} failed: {}",
            job["jobname"],
            job["error"]
        );
    }
    let figure = |value: &Value| value.as_u64().unwrap_or_default();
    let round = Round {
        written: figure(&checked["write"]["io_bytes"]),
        read: figure(&checked["read"]["io_bytes"]),
        trims: figure(&trimmed["trim"]["total_ios"]),
        streams,
    };
    ensure!(
        round.written > 0 && round.read >= round.written && round.trims > 0,
        "fio did not do its work: {}",
        round.tell()
    );
    Ok(round)
}

fn sum(rounds: &[Round], figure: impl Fn(&Round) -> u64) -> u64 {
    rounds.iter().map(figure).sum()
}

#[cfg(test)]
mod tests {
    use super::{read, read_stream};
    use serde_json::json;

    fn report(error: u32, read: u64) -> String {
        format!(
            "fio: note\n{:#}\n[1] + Done ( fio; echo ${{?}} )\n",
            json!({"jobs": [
                {"jobname": "checked", "error": error, "write": {"io_bytes": 4096},
                 "read": {"io_bytes": read}},
                {"jobname": "trimmed", "error": 0, "trim": {"total_ios": 7}},
            ]})
        )
    }

    #[test]
    fn a_round_counts_what_was_verified() {
        let round = read(&report(0, 4096), Vec::new()).unwrap();
        assert_eq!((round.written, round.trims), (4096, 7));
        assert!(read(&report(84, 4096), Vec::new()).is_err());
        assert!(read(&report(0, 0), Vec::new()).is_err());
    }

    #[test]
    fn streams_are_read() {
        let tcp = json!({"end": {"sum_received": {"bits_per_second": 5e6}}});
        assert!((read_stream("t", &tcp).unwrap().mbit_s - 5.0).abs() < 1e-9);
        let udp = json!({"end": {"sum": {"bits_per_second": 1e6, "lost_percent": 2.5}}});
        assert_eq!(read_stream("u", &udp).unwrap().lost_percent, Some(2.5));
        assert!(read_stream("t", &json!({"end": {}})).is_none());
    }
}
