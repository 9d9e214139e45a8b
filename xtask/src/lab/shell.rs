//! `cargo xtask lab shell`: hosts to try things on, commands from standard input.

use std::io::{BufRead, Write};

use anyhow::Result;
use clap::Args;
use unmoved_lab::host::Host;
use unmoved_lab::{Config, Kind, Lab, Xen};

/// Each line is a host's name and a shell command (`a xl list`); `a < FILE PATH` and `a > PATH FILE`
/// copy files in and out.
#[derive(Debug, Args)]
pub struct Shell {
    /// How many hosts: a, b, …
    #[arg(long, default_value_t = 1)]
    hosts: usize,
    /// Their Xen: 4.17 or 4.20
    #[arg(long, default_value = "4.17")]
    xen: Xen,
    /// Their machine: qemu (AMD), or Bochs with a processor: intel, intel-haswell, intel-icelake,
    /// intel-tigerlake, amd-bochs
    #[arg(long, value_name = "MACHINE", default_value = "qemu")]
    machine: Kind,
    /// The RAM of each in MiB, if not the machine's usual
    #[arg(long, value_name = "MIB")]
    host_memory: Option<u32>,
}

impl Shell {
    /// Do it until the input ends.
    ///
    /// # Errors
    /// If the lab does not start.
    pub fn run(self) -> Result<()> {
        let mut config = Config::on(self.machine);
        config.hosts = vec![self.xen; self.hosts];
        config.shape.memory_mib = self.host_memory.unwrap_or(config.shape.memory_mib);
        Lab::run("shell", &config, |lab| {
            eprintln!(
                "HOST COMMAND, one per line; the hosts are a to the {}th letter",
                self.hosts
            );
            for line in std::io::stdin().lock().lines() {
                let line = line?;
                let (name, command) = line.split_once(' ').unwrap_or((&line, ""));
                let Some(host) = lab.hosts.iter().find(|host| host.name() == name) else {
                    eprintln!("there is no host '{name}'");
                    continue;
                };
                if let Err(error) = obey(host, command.trim()) {
                    eprintln!("{error:#}");
                }
                std::io::stdout().flush()?;
            }
            Ok(())
        })
    }
}

fn obey(host: &Host, command: &str) -> Result<()> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["<", file, path] => host.copy_in(file.as_ref(), path),
        [">", path, file] => host.copy_out(path, file.as_ref()),
        _ => {
            let output = host.run(&["sh", "-c", command])?;
            print!("{}{}", output.stdout, output.stderr);
            if output.code != 0 {
                println!("(exit code {})", output.code);
            }
            Ok(())
        }
    }
}
