//! The project's own commands, run as `cargo xtask …`; each sets up by itself what it needs.

mod bench;
mod bench_memory;
mod bench_stream;
mod bench_transfer;
mod demo;
mod fuzz;
mod json;
mod lab;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Unmoved's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download what the lab needs and make its images
    Setup(setup::Setup),
    /// Show what stock Xen can move, and what not
    Demo(demo::Demo),
    /// Measure what each way to run a PV kernel costs
    Bench(bench::Bench),
    /// Measure the host agent's transport over the loopback interface
    BenchTransfer(bench_transfer::BenchTransfer),
    /// Measure what a host agent needs to know of a large guest's frames
    BenchMemory(bench_memory::BenchMemory),
    /// Measure our stream tools beside Xen's own
    BenchStream(bench_stream::BenchStream),
    /// Check everything: format, lints, all tests, with and without hosts
    Test(test::Test),
    /// Feed one of the fuzz targets for a while
    Fuzz(fuzz::Fuzz),
    /// Use the lab by hand
    #[command(subcommand)]
    Lab(lab::Command),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup(setup) => setup.run(),
        Command::Demo(demo) => demo.run(),
        Command::Bench(bench) => bench.run(),
        Command::BenchTransfer(bench) => bench.run(),
        Command::BenchMemory(bench) => bench.run(),
        Command::BenchStream(bench) => bench.run(),
        Command::Test(test) => test.run(),
        Command::Fuzz(fuzz) => fuzz.run(),
        Command::Lab(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One sentence, the reasons after colons; never a backtrace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
